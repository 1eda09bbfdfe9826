"""Which of the forwarded calls are streams. What is done with them: test_http_server.py."""

import pytest

from tritonsched.frontend.forward import generates

STREAMS = {
    "/v2/models/m/generate": ("m", ""),
    "/v2/models/m/generate_stream": ("m", ""),
    "/v2/models/m/versions/3/generate_stream": ("m", "3"),
    "/v2/models/a%2Fb/generate?x=1": ("a%2Fb", ""),
}
OTHERS = (
    "/v2/models/m/infer",
    "/v2/models/generate",
    "/v2/models/m/generate_streams",
    "/v2/models/m/versions/x/generate",
    "/v2/models/m/n/generate",
    "/v2/models/m?/generate",
    "/x/v2/models/m/generate",
    "/v2/models/m/generate/",
)


@pytest.mark.parametrize("path", STREAMS)
def test_a_generated_answer_comes_in_pieces(path: str) -> None:
    assert generates(path) == STREAMS[path]


@pytest.mark.parametrize("path", OTHERS)
def test_every_other_answer_comes_whole(path: str) -> None:
    assert generates(path) is None

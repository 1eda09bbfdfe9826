"""What counts as a finding and what a rule allows."""

import pytest

from tests.differential.cases import get
from tests.differential.grpc_cases import TABLE
from tests.differential.wire import GrpcOutcome, HttpOutcome, HttpReply
from tests.fuzz.verdict import UNANSWERED, Told, finding

SILENT = HttpOutcome((), is_open=False)


def http(status: int, body: bytes = b"", reason: str = "", *, is_open: bool = True) -> HttpOutcome:
    headers = (("x-tritonsched-reason", reason),) if reason else ()
    return HttpOutcome((HttpReply(f"HTTP/1.1 {status} X", headers, body),), is_open=is_open)


def grpc(code: str, reason: str = "") -> GrpcOutcome:
    trailing = (("x-tritonsched-reason", reason),) if reason else ()
    return GrpcOutcome(code, "", (), ((), trailing))


ALLOWED: dict[str, tuple[Told, Told]] = {
    "the same": (http(200, b"a"), http(200, b"a")),
    "both wait": (UNANSWERED, UNANSWERED),
    "not HTTP": (SILENT, http(400, is_open=False)),
    "too long": (SILENT, http(413, is_open=False)),
    "strict": (http(200), http(400, is_open=False)),
    "lenient": (SILENT, http(200)),
    "an answer where Triton waits": (UNANSWERED, http(400, is_open=False)),
    "what may end Triton": (UNANSWERED, http(400, reason="shielded")),
    "what ended Triton": (SILENT, http(400, reason="shielded")),
    "header bytes that are no UTF-8": (http(400, b"\xe4"), http(400, b"\xc3\xa4")),
    "a Triton that has just ended": (SILENT, http(503, reason="triton-unavailable")),
    "the same over gRPC": (grpc("UNAVAILABLE"), grpc("UNAVAILABLE", "triton-unavailable")),
    "two faults": (http(400), http(400, reason="shielded")),
    "two faults over gRPC": (grpc("INVALID_ARGUMENT"), grpc("INTERNAL", "shielded")),
    "a deadline": (http(200), http(504, reason="deadline-unreachable")),
    "a deadline over gRPC": (grpc("OK"), grpc("DEADLINE_EXCEEDED", "deadline-expired")),
}
FOUND: dict[str, tuple[Told, Told]] = {
    "another body": (http(200, b"a"), http(200, b"b")),
    "another status": (http(400), http(500)),
    "an error of ours": (SILENT, http(500, reason="internal")),
    "what Triton answers": (http(200), http(400, reason="shielded")),
    "what Triton answers over gRPC": (grpc("OK"), grpc("INTERNAL", "shielded")),
    "a Triton that answers": (http(200), http(503, reason="triton-unavailable")),
    "a hang": (http(200), UNANSWERED),
    "an error of ours where Triton waits": (UNANSWERED, http(500, reason="internal")),
    "another code": (grpc("OK"), grpc("INTERNAL")),
    "a gRPC hang": (grpc("OK"), UNANSWERED),
}


@pytest.mark.parametrize("in_stream", [False, True])
def test_of_two_wrong_parameters_any_may_be_named(in_stream: bool) -> None:
    texts = (
        "invalid value type for 'a' parameter, expected",
        "parameter keys starting with 'triton_'",
        "invalid value for 'priority', expected value >= 0.",
    )
    made = [
        GrpcOutcome("OK", "", (text.encode(),), ((), ()))
        if in_stream
        else GrpcOutcome("X", text, (), ((), ()))
        for text in texts
    ]
    for other in made[1:]:
        assert finding(TABLE["plain"], made[0], other) == ""
    assert finding(TABLE["plain"], made[0], UNANSWERED) != ""


@pytest.mark.parametrize("name", [*ALLOWED, *FOUND])
def test_a_difference_is_a_finding_unless_a_rule_allows_it(name: str) -> None:
    theirs, mine = (ALLOWED | FOUND)[name]
    case = TABLE["plain"] if isinstance(theirs, GrpcOutcome) else get("/v2")
    assert bool(finding(case, theirs, mine)) == (name in FOUND)

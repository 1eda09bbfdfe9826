"""The comparisons of others' clients see a difference where there is one."""

import json
from pathlib import Path

import pytest

from tests.clients import against_kserve
from tests.clients.against_schemathesis import Found, differences, read
from tests.clients.description import described, of_triton, operations
from tests.clients.stand import ClientFailed, output_of

FINDING = ("GET /v2", "ServerError", 500)


def found(*findings: tuple[str, str, int], status: int = 200) -> Found:
    return Found(frozenset(findings), {"a": (status, "text/plain")}, {"a": "GET /v2"})


def test_a_call_that_brings_something_else_or_nothing_is_a_difference() -> None:
    theirs = {"same": 1, "other": [1, 2], "missing": True}
    told = against_kserve.differences(theirs, {"same": 1, "other": [1, 3]})
    assert [line.split("\n")[0] for line in told] == ["missing", "other"]
    assert not against_kserve.differences(theirs, dict(theirs))


def test_a_finding_of_one_side_alone_is_a_difference() -> None:
    assert list(differences(found(FINDING), found())) == [f"only at Triton: {FINDING}"]
    assert list(differences(found(), found(FINDING))) == [f"only at the sidecar: {FINDING}"]
    assert not list(differences(found(FINDING), found(FINDING)))


def test_a_request_that_is_answered_in_two_ways_is_a_difference() -> None:
    (told,) = differences(found(status=200), found(status=504))
    assert "GET /v2" in told


def test_what_the_hooks_write_is_read_back(tmp_path: Path) -> None:
    lines = (
        {"finding": list(FINDING)},
        {"asked": "a", "request": "GET /v2", "answered": [200, "text/plain"]},
    )
    path = tmp_path / "found"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read(path) == found(FINDING)


def test_triton_is_described_with_every_operation_but_without_what_the_sidecar_answers() -> None:
    document = of_triton(described())
    ours = {key for key in operations(described()) if "/reservations" in key[1]}
    assert operations(document).keys() == operations(described()).keys() - ours
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]
    assert "504" not in infer["responses"]
    assert "503" in infer["responses"]


async def test_a_client_that_ends_badly_is_an_error_with_what_it_said() -> None:
    with pytest.raises(ClientFailed, match="no such file"):
        await output_of("sh", "-c", "echo no such file >&2; exit 3", limit_s=30)

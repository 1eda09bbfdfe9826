"""The OpenAPI description is valid, and tells of what there is: paths, headers and reasons."""

import re
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

import tritonsched
from tests.clients.description import OURS, described, of_triton, operations, with_names
from tests.differential import examples, scripts
from tests.differential.cases import HttpCase
from tests.differential.table import TABLE
from tests.test_docs import INNER_REASONS, leaves
from tritonsched import errors

PACKAGE = Path(tritonsched.__file__).parent
DOCUMENT = described()
ALL = operations(DOCUMENT)
OF_TRITON = operations(of_triton(DOCUMENT))
READ = re.compile(r'"(x-[a-z-]+)"')
HIDDEN = {
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/unregister"),
}
"""Not the same as Triton's by intent, the sidecar's own region is not shown and stays: see
`tests/integration/test_client_shared_memory.py`.
"""


def requests_of(case: Any) -> list[tuple[str, str]]:
    """Methods and paths of a case."""
    if not isinstance(case, HttpCase):
        return []
    lines = [step.split(b"\r\n", 1)[0].decode("latin-1").split(" ") for step in case.ask.steps]
    return [(line[0], line[1].partition("?")[0]) for line in lines if len(line) == 3]


def asked() -> set[tuple[str, str]]:
    """All requests of the differential suite."""
    played = [*scripts.SCRIPTS.values(), *scripts.SLOW.values()]
    played += [*examples.SCRIPTS.values(), *examples.SLOW.values()]
    cases = [*TABLE.values(), *(case for script in played for case in script)]
    return {request for case in cases for request in requests_of(case)}


ASKED = asked()


def test_it_is_valid_as_it_ships_and_as_triton_alone_is_asked() -> None:
    validate(DOCUMENT)
    validate(with_names(of_triton(DOCUMENT), model=("echo",)))


def test_nothing_of_the_sidecar_is_left_in_what_describes_triton() -> None:
    """So that no finding can be about what Triton never promised."""
    left = str(of_triton(DOCUMENT))
    assert OURS not in left
    assert "x-request-deadline-ms" not in left
    assert OURS in str(DOCUMENT)


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [operation["operationId"] for operation in ALL.values()]
    assert len(names) == len(set(names))
    assert len(OF_TRITON) == 40


@pytest.mark.parametrize(("method", "path"), sorted(OF_TRITON.keys() - HIDDEN))
def test_every_operation_stands_in_the_differential_table(method: str, path: str) -> None:
    """What is described is compared with Triton."""
    template = re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)))
    assert any(found == method and template.fullmatch(target) for found, target in ASKED)


def test_every_reason_of_a_refusal_is_described() -> None:
    reasons = {leaf.reason for leaf in leaves(errors.TritonschedError)} - INNER_REASONS
    assert set(DOCUMENT["components"]["schemas"]["Reason"]["enum"]) == reasons


def test_every_header_that_is_read_or_sent_is_described() -> None:
    texts = [path.read_text() for path in (PACKAGE / "frontend").glob("*.py")]
    texts += [path.read_text() for path in (PACKAGE / "proxy").glob("*.py")]
    named = {name for text in texts for name in READ.findall(text)}
    assert len(named) >= 4
    components = DOCUMENT["components"]
    told = {parameter["name"] for parameter in components["parameters"].values()}
    for response in components["responses"].values():
        told |= set(response.get("headers", ()))
    for operation in ALL.values():
        for response in operation["responses"].values():
            told |= set(response.get("headers", ()))
    assert named <= told

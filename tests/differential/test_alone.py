"""Nobody can tell the sidecar from Triton: the whole table, one request at a time."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.differential.cases import GrpcCase
from tests.differential.conftest import Stage
from tests.differential.neighbours import MARK
from tests.differential.table import TABLE, told
from tests.differential.wire import GrpcOutcome
from tests.integration.sidecars import grpc_frontend, running_sidecar
from tritonsched.options import GrpcFrontend
from tritonsched.sidecar import Sidecar

GROUP = 40  # cases of one test: a test of its own for each would cost more than asking it


def groups(names: list[str]) -> list[Any]:
    return [
        pytest.param(names[at : at + GROUP], id=f"{at}-{names[at].partition(':')[0]}")
        for at in range(0, len(names), GROUP)
    ]


def test_the_table_is_as_long_as_it_was_promised() -> None:
    assert len(TABLE) >= 400


@pytest.mark.parametrize("names", groups(list(TABLE)))
async def test_a_client_alone_sees_triton(stage: Stage, alone: Sidecar, names: list[str]) -> None:
    """Status, headers, bodies, messages, and whether the connection lives on."""
    if fault := told({name: await stage.difference(TABLE[name], alone) for name in names}):
        pytest.fail(fault, pytrace=False)


@pytest.fixture(scope="module")
async def other(stage: Stage) -> AsyncIterator[Sidecar]:
    """A sidecar on the gRPC front end that the other tests are not on."""
    (kind,) = set(GrpcFrontend) - {grpc_frontend()}
    async with running_sidecar(stage.triton, grpc_frontend=kind) as started:
        yield started


OVER_GRPC = [name for name, case in TABLE.items() if isinstance(case, GrpcCase)]


@pytest.mark.parametrize("names", groups(OVER_GRPC))
async def test_a_client_of_the_other_grpc_front_end_sees_triton(
    stage: Stage, other: Sidecar, names: list[str]
) -> None:
    """One table holds both."""
    if fault := told({name: await stage.difference(TABLE[name], other) for name in names}):
        pytest.fail(fault, pytrace=False)


ANSWERED = (
    "http: plain", "http: texts", "http: two outputs", "http: both inputs", "http: flat binary",
    "http: nothing comes out", "http: a model that leaves one out", "routes: infer of the latest",
    "routes: infer of an ensemble", "json: INT32 as 1", "http: top 2 binary",
    "grpc: texts", "grpc: typed INT8", "grpc: raw FP16", "routes: stream of three",
    "examples: simple_http_infer", "examples: simple_http_infer in gzip for deflate",
    "examples: simple_http_string_infer JSON to binary",
)  # fmt: skip
"""A case of each model and form that only says something if Triton does not refuse it."""


@pytest.mark.parametrize("name", ANSWERED)
async def test_triton_itself_answers(stage: Stage, name: str) -> None:
    """So that two equal refusals are not taken for two equal answers."""
    theirs = await stage.theirs(TABLE[name])
    said = theirs.code if isinstance(theirs, GrpcOutcome) else theirs.replies[0].start
    assert said in {"OK", "HTTP/1.1 200 OK"}


def test_no_case_speaks_of_a_neighbour() -> None:
    """So that a neighbour's id in an answer is a difference."""
    asks = [case.ask for case in TABLE.values()]
    sent = itertools.chain(*(getattr(ask, "steps", ()) for ask in asks))
    said = itertools.chain(*(getattr(ask, "messages", ()) for ask in asks))
    assert not any(MARK.encode() in data for data in itertools.chain(sent, said))

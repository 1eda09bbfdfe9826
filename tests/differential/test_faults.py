"""With faults injected on the way to Triton: merged calls that fail or lie, and nobody notices."""

import asyncio
import itertools
from typing import Any

import pytest

from tests.differential.conftest import Stage
from tests.differential.neighbours import beside, clients, difference
from tests.differential.table import TABLE, told
from tests.differential.test_crowd import whole_table
from tritonsched.errors import BackendError, MalformedAnswer
from tritonsched.sidecar import Sidecar

ROUNDS = 6


@pytest.fixture
def faulty(merging: Sidecar, monkeypatch: pytest.MonkeyPatch) -> Sidecar:
    """Every other merged call fails: not sent at all, refused, or answered with nonsense."""
    send = merging.backend.send
    faults = itertools.cycle(
        (None, BackendError("INTERNAL: injected"), None, MalformedAnswer("injected"))
    )

    def sometimes(call: Any, done: Any) -> None:
        fault = next(faults)
        if fault is None:
            send(call, done)
        else:
            asyncio.get_running_loop().call_soon(done, fault)

    monkeypatch.setattr(merging.backend, "send", sometimes)
    return merging


@pytest.mark.timeout(300)  # who does not answer is asked, too
async def test_merged_calls_that_fail_are_answered_by_triton_one_by_one(
    stage: Stage, faulty: Sidecar
) -> None:
    """Over each client's own protocol, in Triton's own words."""
    made = clients()
    for _ in range(ROUNDS):
        found = await asyncio.gather(*(difference(stage, client, faulty) for client in made))
        if fault := "".join(found):
            pytest.fail(fault, pytrace=False)


@pytest.mark.usefixtures("thorough")
@pytest.mark.timeout(900)  # with `--repeat`; on a machine that others use, too
async def test_the_whole_table_among_merged_calls_that_fail(
    stage: Stage, faulty: Sidecar, repeats: int
) -> None:
    """Among clients whose requests share its batches, so that there are merged calls to fail."""
    for case in TABLE.values():
        await stage.theirs(case)
    for _ in range(repeats):
        async with beside(stage, faulty) as found_beside:
            found = await whole_table(stage, faulty)
        if fault := told(found) + "".join(found_beside):
            pytest.fail(fault, pytrace=False)

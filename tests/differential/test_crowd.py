"""Merging never shows: the whole table at once, among clients whose requests share its batches."""

import asyncio

import pytest

from tests.differential.conftest import Stage
from tests.differential.neighbours import beside
from tests.differential.table import TABLE, told
from tests.integration.sidecars import metric
from tritonsched.sidecar import Sidecar

AT_ONCE = 64


async def whole_table(stage: Stage, sidecar: Sidecar) -> dict[str, str]:
    """All cases, AT_ONCE at a time; the difference of each."""
    room = asyncio.Semaphore(AT_ONCE)

    async def difference(name: str) -> tuple[str, str]:
        async with room:
            return name, await stage.difference(TABLE[name], sidecar)

    return dict(await asyncio.gather(*map(difference, TABLE)))


@pytest.mark.timeout(900)  # with `--repeat`; on a machine that others use, too
async def test_a_client_in_a_crowd_sees_triton_and_so_does_the_crowd(
    stage: Stage, merging: Sidecar, repeats: int
) -> None:
    """Some of the crowd are refused by their model, so batches are taken apart all the time."""
    for case in TABLE.values():
        await stage.theirs(case)
    for _ in range(repeats):
        async with beside(stage, merging) as faults:
            found = await whole_table(stage, merging)
        if fault := told(found) + "".join(faults):
            pytest.fail(fault, pytrace=False)
    assert await metric(merging, "tritonsched_merge_failures_total") > 0
    batches = await metric(merging, "tritonsched_batch_requests_count")
    requests = await metric(merging, "tritonsched_batch_requests_sum")
    assert requests > 1.2 * batches, f"hardly merged: {requests} requests in {batches} batches"

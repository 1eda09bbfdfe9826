"""What changes Triton changes it the same way through the sidecar, which forgets what it knew."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.differential import examples
from tests.differential.conftest import Stage
from tests.differential.scripts import REGION_BYTES, REGION_KEY, SCRIPTS, SLOW, Script
from tests.differential.table import told
from tritonsched.sidecar import Sidecar

QUICK = SCRIPTS | examples.SCRIPTS
LONG = SLOW | examples.SLOW


@pytest.fixture(autouse=True)
def region() -> Iterator[None]:
    """A client's shared memory, as it is before each side's turn."""
    path = Path("/dev/shm") / REGION_KEY.lstrip("/")
    path.write_bytes(np.arange(REGION_BYTES // 4, dtype=np.float32).tobytes())
    yield
    os.unlink(path)


@pytest.mark.parametrize("name", QUICK)
async def test_a_script_ends_the_same_step_by_step(
    stage: Stage, merging: Sidecar, name: str
) -> None:
    await play(name, QUICK[name], stage, merging)


@pytest.mark.usefixtures("thorough")
@pytest.mark.parametrize("name", LONG)
async def test_a_slow_script_does_too(stage: Stage, merging: Sidecar, name: str) -> None:
    await play(name, LONG[name], stage, merging)


async def play(name: str, script: Script, stage: Stage, merging: Sidecar) -> None:
    """First with Triton, then through the sidecar, which has seen the models before."""
    asked: dict[str, str] = {}
    theirs = [await stage.asked(case) for case in script]
    for number, (case, outcome) in enumerate(zip(script, theirs, strict=True), 1):
        asked[f"{name}, step {number}"] = await stage.compared(case, outcome, merging)
    if fault := told(asked):
        pytest.fail(fault, pytrace=False)

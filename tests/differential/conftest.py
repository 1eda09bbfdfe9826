"""One Triton with the table's models, sidecars in front of it. `--all` adds what `make test` has no
time for; `--repeat` asks the whole table so often in the crowd and among faults.
"""

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import pytest

from tests.differential.cases import GrpcCase, HttpCase
from tests.differential.compare import NOT_ASKED, grpc_difference, http_difference
from tests.differential.models import write_repository
from tests.differential.wire import GrpcOutcome, HttpOutcome, ask_grpc, ask_http, channel
from tests.integration.sidecars import grpc_url, http_url, running_sidecar
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.sidecar import Sidecar

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("TRITONSCHED_TRITON_ENV", ROOT / ".venv-triton"))
MERGING = "scheduler: {policy: fcfs, window_ms: 40}\n"
"""Whatever may share a batch does: each waits for others, however idle Triton is."""

Case = HttpCase | GrpcCase
Outcome = HttpOutcome | GrpcOutcome


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also what takes long: large messages")
    parser.addoption("--repeat", type=int, default=1, help="how often the table is asked merged")


@dataclass(slots=True)
class Stage:
    """Triton and what it said so far. answers: by case; channels: by address."""

    triton: EmbeddedTriton
    answers: dict[Case, Outcome] = field(default_factory=dict)
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    def channel(self, address: str) -> grpc.aio.Channel:
        """The one channel to a server."""
        if address not in self.channels:
            self.channels[address] = channel(address)
        return self.channels[address]

    async def close(self) -> None:
        for opened in self.channels.values():
            await opened.close(None)

    async def asked(self, case: Case) -> Outcome:
        """Triton's own outcome, now."""
        if isinstance(case, HttpCase) and case.may_differ == "lenient":
            return NOT_ASKED
        triton = self.triton
        return await self.at(case, http=triton.http_address, grpc=triton.grpc_address)

    async def at(self, case: Case, *, http: str, grpc: str) -> Outcome:
        """Of whoever listens there."""
        if isinstance(case, GrpcCase):
            return await ask_grpc(self.channel(grpc), case.ask)
        return await ask_http(http, case.ask)

    async def compared(self, case: Case, theirs: Outcome, sidecar: Sidecar) -> str:
        """What the sidecar answers now differs by this; empty if by nothing."""
        mine = await self.at(case, http=http_url(sidecar), grpc=grpc_url(sidecar))
        if isinstance(case, GrpcCase):
            assert isinstance(theirs, GrpcOutcome)
            assert isinstance(mine, GrpcOutcome)
            return grpc_difference(case.ask, theirs, mine)
        assert isinstance(theirs, HttpOutcome)
        assert isinstance(mine, HttpOutcome)
        return http_difference(theirs, mine, case.may_differ)

    async def theirs(self, case: Case) -> Outcome:
        """Triton's own outcome; it is asked once."""
        if case not in self.answers:
            self.answers[case] = await self.asked(case)
        return self.answers[case]

    async def difference(self, case: Case, sidecar: Sidecar) -> str:
        """Between Triton's outcome and the sidecar's; empty if there is none."""
        return await self.compared(case, await self.theirs(case), sidecar)


@pytest.fixture(scope="session")
def repeats(pytestconfig: pytest.Config) -> int:
    """How often the whole table is asked under merging."""
    return int(pytestconfig.getoption("--repeat", default=1))


@pytest.fixture
def thorough() -> None:
    """For what `make test` has no time for: only `--all` selects the tests that ask for it."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselected, which pytest tells with their number; nothing is skipped."""
    if config.getoption("--all", default=False):
        return
    left_out = [item for item in items if "thorough" in getattr(item, "fixturenames", ())]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Do not kill its Triton."""
    directory = tmp_path_factory.mktemp("differential")
    write_repository(directory / "models")
    config = EmbeddedConfig(
        repository=directory / "models",
        environment=ENVIRONMENT,
        run_dir=directory / "run",
        control_mode="explicit",
    )
    triton = EmbeddedTriton(config)
    try:
        await triton.start()
        made = Stage(triton)
        yield made
        await made.close()
    finally:
        if triton.is_running:
            os.kill(triton.pid, signal.SIGKILL)  # a polite stop takes 3 s
        await triton.stop()


@pytest.fixture(scope="module")
async def alone(stage: Stage) -> AsyncIterator[Sidecar]:
    """A sidecar as it comes."""
    async with running_sidecar(stage.triton) as started:
        yield started


@pytest.fixture(scope="module")
async def merging(stage: Stage) -> AsyncIterator[Sidecar]:
    """A sidecar that merges as much as it can."""
    async with running_sidecar(stage.triton, policy=MERGING) as started:
        yield started

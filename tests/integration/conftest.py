"""Real Tritons for the tests. Rule: what a test needs and lacks is an error with the command to
type, never a skip.
"""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.integration.sidecars import running_sidecar
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.sidecar import Sidecar

ROOT = Path(__file__).parents[2]
MODEL_REPOSITORY = ROOT / "model_repository"
TRITON_ENVIRONMENT = Path(os.environ.get("TRITONSCHED_TRITON_ENV", ROOT / ".venv-triton"))


class TritonFactory(Protocol):
    """Starts an embedded Triton of a test's own; it is stopped when the test ends."""

    async def __call__(
        self, repository: Path, *, started: bool = True, **options: Any
    ) -> EmbeddedTriton:
        """options: fields of EmbeddedConfig. started: False leaves `start()` to the test."""


@pytest.fixture(scope="session")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the emulated GPU is compiled, once a session."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="session")
async def triton(
    tmp_path_factory: pytest.TempPathFactory, build_dir: Path
) -> AsyncIterator[EmbeddedTriton]:
    """The repository's own models on one Triton for the whole session: do not kill it."""
    config = EmbeddedConfig(
        repository=MODEL_REPOSITORY,
        environment=TRITON_ENVIRONMENT,
        run_dir=tmp_path_factory.mktemp("triton"),
        build_dir=build_dir,
    )
    async with EmbeddedTriton(config) as started:
        yield started


@pytest.fixture
async def triton_factory(
    tmp_path_factory: pytest.TempPathFactory, build_dir: Path
) -> AsyncIterator[TritonFactory]:
    """Tritons of one test's own, to be killed and broken."""
    made: list[EmbeddedTriton] = []

    async def make(repository: Path, *, started: bool = True, **options: Any) -> EmbeddedTriton:
        fields: dict[str, Any] = {
            "environment": TRITON_ENVIRONMENT,
            "run_dir": tmp_path_factory.mktemp("triton"),
            "build_dir": build_dir,
        }
        triton = EmbeddedTriton(EmbeddedConfig(repository=repository, **(fields | options)))
        made.append(triton)
        if started:
            await triton.start()
        return triton

    yield make
    for triton in reversed(made):
        if triton.is_running:
            os.kill(triton.pid, signal.SIGKILL)  # a polite stop takes 3 s and has its own test
        await triton.stop()


@pytest.fixture(scope="session")
async def sidecar(
    triton: EmbeddedTriton,
) -> AsyncIterator[Sidecar]:
    """A sidecar in front of the session's Triton, in this process: do not stop it."""
    async with running_sidecar(triton) as started:
        yield started

"""A Triton backend, connected to the stand-in."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.backend.fake_triton import FakeGrpc, FakeHttp
from tests.unit.backend.pair import Pair, paired
from tritonsched.backend.triton import TritonBackend

POOL_BYTES = 64 * 1024


class Setup:
    """A backend and the Triton behind it. transport as given; shared memory in `directory`."""

    def __init__(self, directory: Path, transport: Any = "auto", pool: int | None = POOL_BYTES):
        self.directory = directory
        self.http = FakeHttp()
        self.grpc = FakeGrpc(directory)
        self.backend = TritonBackend(
            self.http, self.grpc, transport=transport, pool_bytes=pool, shm_directory=directory
        )

    def files(self) -> list[str]:
        """What lies in shared memory."""
        return sorted(path.name for path in self.directory.iterdir())

    @property
    def region(self) -> str:
        (name,) = self.grpc.regions
        return name


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Setup]:
    """Connected, with shared memory."""
    setup = Setup(tmp_path)
    await setup.backend.connect()
    yield setup
    await setup.backend.close()


@pytest.fixture
async def inline(tmp_path: Path) -> AsyncIterator[Setup]:
    """Connected, without shared memory."""
    setup = Setup(tmp_path, "inline")
    await setup.backend.connect()
    yield setup
    await setup.backend.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Two servers, both connected, with shared memory."""
    async with paired(tmp_path) as made:
        yield made

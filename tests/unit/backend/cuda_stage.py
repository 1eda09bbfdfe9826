"""A backend on scripted GPUs, a Triton on the same ones as another process, and a client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.unit.backend.fake_triton import FakeGrpc, FakeHttp
from tritonsched.backend.batch_call import BatchCall
from tritonsched.backend.cuda import GRAIN_BYTES, Cuda
from tritonsched.backend.scripted_cuda import Fault, ScriptedCuda
from tritonsched.backend.triton import TritonBackend
from tritonsched.errors import CudaFault

POOL_BYTES = GRAIN_BYTES
SYSTEM_BYTES = 64 * 1024


class CudaStage:
    """cuda: as the sidecar sees the GPUs. there: Triton's view. client: another process' view."""

    def __init__(
        self, directory: Path, *, transport: Any = "auto", gpus: int = 1, faults: set[Fault]
    ) -> None:
        self.cuda = ScriptedCuda([f"scripted {n}" for n in range(gpus)], faults=faults)
        self.there = self.cuda.process()
        self.client = self.cuda.process()
        self.http = FakeHttp()
        self.grpc = FakeGrpc(directory, self.there)
        self.is_installed = True
        self.backend = TritonBackend(
            self.http,
            self.grpc,
            transport=transport,
            pool_bytes=SYSTEM_BYTES,
            shm_directory=directory,
            cuda_pool_bytes=POOL_BYTES,
            cuda=self._load,
        )

    def _load(self) -> Cuda:
        if not self.is_installed:
            raise CudaFault("NVIDIA's cuda-bindings are not installed")
        return self.cuda

    def held(self) -> list[str]:
        """What neither side has given back."""
        return [*self.cuda.held(), *self.there.held()]


@asynccontextmanager
async def staged(
    directory: Path, *faults: Fault, transport: Any = "auto", gpus: int = 1
) -> AsyncIterator[CudaStage]:
    """Connected; at the end everything has been given back."""
    stage = CudaStage(directory, transport=transport, gpus=gpus, faults=set(faults))
    await stage.backend.connect()
    try:
        yield stage
    finally:
        stage.cuda.gate.set()
        await stage.backend.close()
    assert stage.held() == []


def on_gpu(call: BatchCall, device: int = 0) -> BatchCall:
    """The batch as the driver sends it for a model on that GPU."""
    return replace(call, device=f"gpu:{device}")

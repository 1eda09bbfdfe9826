"""Clients with regions of their own, through a sidecar: NVIDIA's client library as it is.

Rule: the clients are one process, the sidecar and Triton are others, as it is in life. Each client
has a region for its input and one for its output; what it reads there must be what a client gets
who sends bytes. To rehearse, the regions are system shared memory.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import numpy as np
import tritonclient.grpc as over_grpc
from numpy.typing import NDArray
from tritonclient.utils import shared_memory

from tests.gpu.repository import Net
from tests.integration.sidecars import serve_process
from tritonsched.backend.embedded import EmbeddedTriton

CLIENTS = 8  # at once, so that batches have members to merge
ROUNDS = 3
_BATCHES = re.compile(r'tritonsched_backend_batches\{transport="(\w+)"\} (\S+)')


class Region(Protocol):
    """One region of a client's."""

    def put(self, values: NDArray[np.float32]) -> None: ...

    def get(self, shape: Sequence[int]) -> NDArray[np.float32]: ...

    def register(self, client: Any) -> None: ...

    def close(self, client: Any) -> None: ...


class CudaRegion:
    """Memory of the first GPU, by tritonclient's CUDA utilities."""

    def __init__(self, name: str, size: int) -> None:
        from tritonclient.utils import cuda_shared_memory  # needs a driver

        self._library = cuda_shared_memory
        self._name, self._size = name, size
        self._handle = cuda_shared_memory.create_shared_memory_region(name, size, 0)

    def put(self, values: NDArray[np.float32]) -> None:
        self._library.set_shared_memory_region(self._handle, [values])

    def get(self, shape: Sequence[int]) -> NDArray[np.float32]:
        made = self._library.get_contents_as_numpy(self._handle, np.float32, list(shape))
        return np.asarray(made, np.float32)

    def register(self, client: Any) -> None:
        raw = self._library.get_raw_handle(self._handle)
        client.register_cuda_shared_memory(self._name, raw, 0, self._size)

    def close(self, client: Any) -> None:
        client.unregister_cuda_shared_memory(self._name)
        self._library.destroy_shared_memory_region(self._handle)


class SystemRegion:
    """POSIX shared memory, by the same library."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._handle = shared_memory.create_shared_memory_region(name, f"/{name}", size)

    def put(self, values: NDArray[np.float32]) -> None:
        shared_memory.set_shared_memory_region(self._handle, [values])

    def get(self, shape: Sequence[int]) -> NDArray[np.float32]:
        made = shared_memory.get_contents_as_numpy(self._handle, np.float32, list(shape))
        return np.array(made, np.float32)

    def register(self, client: Any) -> None:
        client.register_system_shared_memory(self._name, f"/{self._name}", self._size)

    def close(self, client: Any) -> None:
        client.unregister_system_shared_memory(self._name)
        shared_memory.destroy_shared_memory_region(self._handle)


@dataclass(frozen=True, slots=True)
class Visit:
    """One client of `address`. kind: of its regions."""

    kind: type[CudaRegion] | type[SystemRegion]
    address: str
    net: Net
    number: int

    def run(self) -> bool:
        """Whether all its answers were equal to those to bytes. Blocks."""
        with over_grpc.InferenceServerClient(self.address) as client:
            values = np.random.default_rng(self.number).random((1, *self.net.dims), np.float32)
            shape = (1, *self.net.out)
            given = self.kind(f"kit_in_{self.number}", values.nbytes)
            wanted = self.kind(f"kit_out_{self.number}", self.net.out_bytes)
            try:
                given.put(values)
                given.register(client)
                wanted.register(client)
                return all(self._asked(client, values, wanted, shape) for _ in range(ROUNDS))
            finally:
                given.close(client)
                wanted.close(client)

    def _asked(
        self, client: Any, values: NDArray[np.float32], wanted: Region, shape: Sequence[int]
    ) -> bool:
        tensor = over_grpc.InferInput("INPUT", list(values.shape), "FP32")
        tensor.set_shared_memory(f"kit_in_{self.number}", values.nbytes)
        output = over_grpc.InferRequestedOutput("OUTPUT")
        output.set_shared_memory(f"kit_out_{self.number}", self.net.out_bytes)
        client.infer(self.net.name, [tensor], outputs=[output])
        seen = wanted.get(shape)
        plain = over_grpc.InferInput("INPUT", list(values.shape), "FP32")
        plain.set_data_from_numpy(values)
        answer = client.infer(self.net.name, [plain]).as_numpy("OUTPUT")
        # Batches of other sizes may take other kernels, so the last bits may differ.
        return bool(np.allclose(seen, answer, rtol=1e-3, atol=1e-4))


async def visited(
    triton: EmbeddedTriton, net: Net, *, cuda: bool, arguments: Sequence[str]
) -> dict[str, Any]:
    """All clients at once at one sidecar, and by which transport their batches went."""
    kind = CudaRegion if cuda else SystemRegion
    http, grpc = triton.http_address, triton.grpc_address
    async with serve_process("--triton-http", http, "--triton-grpc", grpc, *arguments) as served:
        visits = [Visit(kind, served.grpc, net, number) for number in range(CLIENTS)]
        equal = await asyncio.gather(*(asyncio.to_thread(visit.run) for visit in visits))
        url = f"http://{served.metrics}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            batches = batches_of(await reply.text())
    return {
        "model": net.name,
        "regions": "cuda" if cuda else "system",
        "clients": CLIENTS,
        "requests": 2 * CLIENTS * ROUNDS,
        "equal": all(equal),
        "batches": batches,
    }


def batches_of(metrics: str) -> dict[str, int]:
    """Merged batches by transport, as the sidecar counts them."""
    return {name: int(float(value)) for name, value in _BATCHES.findall(metrics)}

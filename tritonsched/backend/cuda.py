"""What is needed of CUDA, and nothing more. Rule: small enough to be played by a script.

Two implementations: `cuda_runtime` (NVIDIA's own bindings, imported when it is first asked for) and
`scripted_cuda` (memory of this process, with planted faults). Addresses are numbers, as in CUDA.

Devices are numbered as the process sees them: Triton and the sidecar must see the same GPUs in the
same order (CUDA_VISIBLE_DEVICES), which opening a handle on the numbered device shows.
Source: CUDA runtime API, chapters 6.9 (stream), 6.12 (memory) and 6.10 (interprocess).
"""

import re
from dataclasses import dataclass
from typing import Protocol

from tritonsched.errors import CudaFault

HANDLE_BYTES = 64  # CUDA_IPC_HANDLE_SIZE
# The driver may cut small allocations out of one of 2 MiB, and a handle opens the whole.
GRAIN_BYTES = 2 * 1024 * 1024
DEVICES_MAX = 64
_LABEL = re.compile(r"gpu:(\d{1,4})")  # as `catalogue.devices_of` names a GPU


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Page-locked memory of this process, which a device copies from and to without help."""

    address: int
    view: memoryview


class Stream(Protocol):
    """Copies of one device, one after the other. Not for two threads at once."""

    def copy(self, target: int, source: int, byte_size: int) -> None:
        """Begin a copy between any two of host (page-locked) and devices; returns before it ends.

        Raises CudaFault.
        """

    def finish(self) -> None:
        """Wait until all copies begun so far have ended. Raises CudaFault if one failed."""

    def close(self) -> None:
        """Give it back. Never raises."""


class Cuda(Protocol):
    """Every method may take milliseconds and raises CudaFault unless it says otherwise."""

    def devices(self) -> tuple[str, ...]:
        """The names of the GPUs that this process sees, in order."""

    def allocate(self, device: int, byte_size: int) -> int:
        """Device memory of its own, whose handle others can open."""

    def free(self, device: int, address: int) -> None:
        """Give device memory back; nobody has its handle open any more."""

    def allocate_host(self, device: int, byte_size: int) -> HostMemory:
        """Page-locked host memory near the device."""

    def free_host(self, memory: HostMemory) -> None:
        """Give it back; its views end here."""

    def handle(self, device: int, address: int) -> bytes:
        """What another process needs to open the memory: 64 bytes. A secret."""

    def open_handle(self, device: int, handle: bytes) -> int:
        """Another process' memory, as an address here. Not for handles of this process."""

    def extent(self, device: int, address: int) -> int:
        """How many bytes follow from there on in what `open_handle` opened."""

    def close_handle(self, device: int, address: int) -> None:
        """Close what `open_handle` opened."""

    def stream(self, device: int) -> Stream:
        """A new one."""


def device_number(label: str) -> int | None:
    """The GPU of a scheduler's device, of `gpu:0` and `server/gpu:0`; None if it is none."""
    found = _LABEL.fullmatch(label.rpartition("/")[2])
    return int(found[1]) if found else None


def load() -> Cuda:
    """The machine's own CUDA. Raises CudaFault: no bindings, no driver, or no GPU."""
    try:
        from tritonsched.backend.cuda_runtime import CudaRuntime  # noqa: PLC0415  # lazily
    except ImportError as error:
        text = "NVIDIA's cuda-bindings are not installed: pip install 'tritonsched[cuda]'"
        raise CudaFault(text) from error
    return CudaRuntime()

"""`Cuda` on NVIDIA's runtime bindings. Rule: one call each, its error in words; no state.

The current device belongs to a thread, so every call sets it. The bindings give up the interpreter
while they are in CUDA. A stream waits by an event made for blocking: the default one keeps a core
busy for as long as the copy takes. cuda-bindings 13 needs a driver of CUDA 13 (580 or newer), 12
one of CUDA 12; both have what is used here, but `cudaIpcMemHandle_t` lost its bytes in 13, so they
are read through its address (as tritonclient does).
"""

import ctypes
from typing import Any

from cuda.bindings import driver
from cuda.bindings import runtime as cudart

from tritonsched.backend.cuda import DEVICES_MAX, HANDLE_BYTES, HostMemory, Stream
from tritonsched.errors import CudaFault


def _call(function: Any, *arguments: Any) -> Any:
    """The call's result. Raises CudaFault in CUDA's words."""
    error, *results = function(*arguments)
    if error != cudart.cudaError_t.cudaSuccess:
        _, name = cudart.cudaGetErrorName(error)
        _, text = cudart.cudaGetErrorString(error)
        raise CudaFault(f"{function.__name__}: {name.decode()} ({text.decode()})")
    return results[0] if results else None


class CudaRuntime:
    """The GPUs of this machine. Raises CudaFault if there are none, or no driver for them."""

    def __init__(self) -> None:
        count = int(_call(cudart.cudaGetDeviceCount))
        if count < 1:
            raise CudaFault("the NVIDIA driver shows no GPU")
        self._count = min(count, DEVICES_MAX)

    def devices(self) -> tuple[str, ...]:
        """See Cuda."""
        return tuple(self._name(device) for device in range(self._count))

    def _name(self, device: int) -> str:
        name: bytes = _call(cudart.cudaGetDeviceProperties, device).name
        return name.partition(b"\0")[0].decode(errors="replace")

    def allocate(self, device: int, byte_size: int) -> int:
        """See Cuda."""
        self._use(device)
        return int(_call(cudart.cudaMalloc, byte_size))

    def free(self, device: int, address: int) -> None:
        """See Cuda."""
        self._use(device)
        _call(cudart.cudaFree, address)

    def allocate_host(self, device: int, byte_size: int) -> HostMemory:
        """See Cuda."""
        self._use(device)
        address = int(_call(cudart.cudaHostAlloc, byte_size, cudart.cudaHostAllocPortable))
        array = (ctypes.c_ubyte * byte_size).from_address(address)
        return HostMemory(address, memoryview(array).cast("B"))

    def free_host(self, memory: HostMemory) -> None:
        """See Cuda."""
        memory.view.release()
        _call(cudart.cudaFreeHost, memory.address)

    def handle(self, device: int, address: int) -> bytes:
        """See Cuda."""
        self._use(device)
        made = _call(cudart.cudaIpcGetMemHandle, address)
        return ctypes.string_at(made.getPtr(), HANDLE_BYTES)

    def open_handle(self, device: int, handle: bytes) -> int:
        """See Cuda."""
        if len(handle) != HANDLE_BYTES:
            raise CudaFault(f"a CUDA handle has {HANDLE_BYTES} bytes, this one {len(handle)}")
        self._use(device)
        given = cudart.cudaIpcMemHandle_t()
        ctypes.memmove(given.getPtr(), handle, HANDLE_BYTES)
        flags = cudart.cudaIpcMemLazyEnablePeerAccess
        return int(_call(cudart.cudaIpcOpenMemHandle, given, flags))

    def extent(self, device: int, address: int) -> int:
        """See Cuda. The driver's call: the runtime has none."""
        self._use(device)
        error, base, size = driver.cuMemGetAddressRange(address)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise CudaFault(f"cuMemGetAddressRange: {error.name}")
        return int(base) + int(size) - address

    def close_handle(self, device: int, address: int) -> None:
        """See Cuda."""
        self._use(device)
        _call(cudart.cudaIpcCloseMemHandle, address)

    def stream(self, device: int) -> Stream:
        """See Cuda."""
        self._use(device)
        return _RuntimeStream(device)

    def _use(self, device: int) -> None:
        if not 0 <= device < self._count:
            raise CudaFault(f"there is no GPU {device}; this process sees {self._count}")
        _call(cudart.cudaSetDevice, device)


class _RuntimeStream:
    """One stream and the event that its owner waits for. See Stream."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._stream = _call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        flags = cudart.cudaEventBlockingSync | cudart.cudaEventDisableTiming
        self._event = _call(cudart.cudaEventCreateWithFlags, flags)

    def copy(self, target: int, source: int, byte_size: int) -> None:
        """See Stream."""
        _call(cudart.cudaSetDevice, self._device)
        kind = cudart.cudaMemcpyKind.cudaMemcpyDefault  # told from the addresses
        _call(cudart.cudaMemcpyAsync, target, source, byte_size, kind, self._stream)

    def finish(self) -> None:
        """See Stream."""
        _call(cudart.cudaEventRecord, self._event, self._stream)
        _call(cudart.cudaEventSynchronize, self._event)

    def close(self) -> None:
        """See Stream."""
        cudart.cudaEventDestroy(self._event)
        cudart.cudaStreamDestroy(self._stream)

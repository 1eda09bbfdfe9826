"""NVIDIA's bindings, called as they are: the real module's types, its functions played by a test.

No GPU is at hand where these run. `python -m tests.gpu` calls the real ones.
"""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import driver, runtime

from tritonsched.backend import cuda_runtime
from tritonsched.backend.cuda import HANDLE_BYTES, load
from tritonsched.backend.cuda_runtime import CudaRuntime
from tritonsched.errors import CudaFault

REAL: Any = runtime
OK = REAL.cudaError_t.cudaSuccess
BROKEN = REAL.cudaError_t.cudaErrorMemoryAllocation
HANDLE = bytes(range(HANDLE_BYTES))


class Bindings:
    """cuda.bindings.runtime without a device: its names, constants and classes; calls are noted.

    results: by function, what follows the error code. fails: the function that does not work.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails = ""
        self.memory = ctypes.create_string_buffer(64)
        handle = REAL.cudaIpcMemHandle_t()
        ctypes.memmove(handle.getPtr(), HANDLE, HANDLE_BYTES)
        self.results: dict[str, tuple[Any, ...]] = {
            "cudaGetDeviceCount": (2,),
            "cudaGetDeviceProperties": (SimpleNamespace(name=b"NVIDIA Test\0\0"),),
            "cudaMalloc": (0x1000,),
            "cudaHostAlloc": (ctypes.addressof(self.memory),),
            "cudaIpcGetMemHandle": (handle,),
            "cudaIpcOpenMemHandle": (0x2000,),
            "cudaStreamCreateWithFlags": ("stream",),
            "cudaEventCreateWithFlags": ("event",),
            "cuMemGetAddressRange": (0x1F00, 0x300),
        }

    def __getattr__(self, name: str) -> Any:
        real = getattr(REAL, name)
        if not name.startswith("cuda") or not callable(real) or name.endswith("_t"):
            return real
        if name in ("cudaGetErrorName", "cudaGetErrorString", "cudaMemcpyKind"):
            return real
        return self._function(name)

    def _function(self, name: str) -> Callable[..., Any]:
        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return (BROKEN if name == self.fails else OK, *self.results.get(name, ()))

        function.__name__ = name
        return function

    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    made = Bindings()
    monkeypatch.setattr(cuda_runtime, "cudart", made)
    return made


def test_here_there_is_no_gpu_and_cuda_says_so() -> None:
    """The real bindings, without a driver: the reason is CUDA's own word."""
    if REAL.cudaGetDeviceCount()[0] == OK:
        assert load().devices()
    else:
        with pytest.raises(CudaFault, match="cudaGetDeviceCount: cudaError"):
            load()


def test_no_gpu_at_all_is_a_fault(bindings: Bindings) -> None:
    bindings.results["cudaGetDeviceCount"] = (0,)
    with pytest.raises(CudaFault, match="no GPU"):
        CudaRuntime()


def test_without_the_bindings_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonsched.backend.cuda_runtime", None)
    with pytest.raises(CudaFault, match=r"tritonsched\[cuda\]"):
        load()


def test_devices_are_named(bindings: Bindings) -> None:
    assert CudaRuntime().devices() == ("NVIDIA Test", "NVIDIA Test")


def test_every_call_is_made_on_its_device(bindings: Bindings) -> None:
    """The current device belongs to a thread."""
    cuda = CudaRuntime()
    bindings.calls.clear()
    assert cuda.allocate(1, 4096) == 0x1000
    cuda.free(1, 0x1000)
    assert bindings.calls == [
        ("cudaSetDevice", 1),
        ("cudaMalloc", 4096),
        ("cudaSetDevice", 1),
        ("cudaFree", 0x1000),
    ]


def test_a_device_that_is_not_there_is_refused_before_cuda(bindings: Bindings) -> None:
    with pytest.raises(CudaFault, match="no GPU 2; this process sees 2"):
        CudaRuntime().allocate(2, 1)
    assert bindings.names() == ["cudaGetDeviceCount"]


def test_host_memory_is_seen_where_cuda_made_it(bindings: Bindings) -> None:
    made = CudaRuntime().allocate_host(0, 64)
    made.view[:3] = b"abc"
    assert bindings.memory.raw[:3] == b"abc"
    CudaRuntime().free_host(made)
    assert bindings.calls[-1] == ("cudaFreeHost", ctypes.addressof(bindings.memory))


def test_a_handle_is_its_bytes_both_ways(bindings: Bindings) -> None:
    """cuda-bindings 13 shows the address of a handle and nothing else."""
    cuda = CudaRuntime()
    assert cuda.handle(0, 0x1000) == HANDLE
    assert cuda.open_handle(0, HANDLE) == 0x2000
    name, given, flags = bindings.calls[-1]
    assert name == "cudaIpcOpenMemHandle"
    assert ctypes.string_at(given.getPtr(), HANDLE_BYTES) == HANDLE
    assert flags == REAL.cudaIpcMemLazyEnablePeerAccess
    cuda.close_handle(0, 0x2000)
    assert bindings.calls[-1] == ("cudaIpcCloseMemHandle", 0x2000)
    with pytest.raises(CudaFault, match="64 bytes, this one 3"):
        cuda.open_handle(0, b"abc")


def test_the_extent_is_what_follows_in_the_block(
    bindings: Bindings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = driver.CUresult
    answers = iter([(real.CUDA_SUCCESS, 0x1F00, 0x300), (real.CUDA_ERROR_NOT_FOUND, 0, 0)])
    played = SimpleNamespace(CUresult=real, cuMemGetAddressRange=lambda _: next(answers))
    monkeypatch.setattr(cuda_runtime, "driver", played)
    assert CudaRuntime().extent(0, 0x2000) == 0x200
    with pytest.raises(CudaFault, match="CUDA_ERROR_NOT_FOUND"):
        CudaRuntime().extent(0, 0x2000)


def test_a_stream_copies_without_waiting_and_waits_without_spinning(bindings: Bindings) -> None:
    stream = CudaRuntime().stream(1)
    flags = next(call[1] for call in bindings.calls if call[0] == "cudaEventCreateWithFlags")
    assert flags & REAL.cudaEventBlockingSync
    bindings.calls.clear()
    stream.copy(0x1000, 0x2000, 64)
    kind = REAL.cudaMemcpyKind.cudaMemcpyDefault
    assert bindings.calls[-1] == ("cudaMemcpyAsync", 0x1000, 0x2000, 64, kind, "stream")
    stream.finish()
    assert bindings.names()[-2:] == ["cudaEventRecord", "cudaEventSynchronize"]
    stream.close()
    assert bindings.names()[-2:] == ["cudaEventDestroy", "cudaStreamDestroy"]


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaSetDevice"])
def test_what_fails_is_told_in_cudas_words(bindings: Bindings, call: str) -> None:
    cuda = CudaRuntime()
    bindings.fails = call
    with pytest.raises(CudaFault, match=f"{call}: cudaErrorMemoryAllocation"):
        cuda.allocate(0, 1)

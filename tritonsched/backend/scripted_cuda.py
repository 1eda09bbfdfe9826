"""GPUs made of this process' memory, for tests and demonstrations without one.

Rule: as strict as CUDA and stricter. A copy is done when its stream is waited for and not before;
an address that nobody allocated, a second free, freeing what another process has open, and a handle
opened by its own process are faults; what was not given back is told. Faults are planted by name:

| fault          | what happens                                     |
|----------------|--------------------------------------------------|
| `out-of-memory`| `allocate` fails                                 |
| `no-host`      | `allocate_host` fails                            |
| `no-handle`    | `handle` fails: CUDA without IPC                 |
| `ipc-refused`  | `open_handle` fails                              |
| `copy-error`   | the next `finish` fails, and all after it        |
| `wrong-bytes`  | copies end well, with other bytes                |

`process()` is another process on the same GPUs: it opens handles of this one.
"""

import ctypes
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from tritonsched.backend.cuda import HANDLE_BYTES, HostMemory, Stream
from tritonsched.errors import CudaFault

Fault = Literal["out-of-memory", "no-host", "no-handle", "ipc-refused", "copy-error", "wrong-bytes"]


@dataclass(slots=True)
class _Allocation:
    """Memory of a device (-1: host) and who made it."""

    device: int
    owner: int
    array: ctypes.Array[ctypes.c_ubyte]

    @property
    def address(self) -> int:
        return ctypes.addressof(self.array)

    @property
    def end(self) -> int:
        return self.address + len(self.array)


@dataclass(slots=True)
class _Machine:
    """What all processes share: memory by address, handles, faults, copies."""

    names: tuple[str, ...]
    faults: set[Fault]
    memory: dict[int, _Allocation] = field(default_factory=dict)
    handles: dict[bytes, int] = field(default_factory=dict)
    opened: list[tuple[int, int, int]] = field(default_factory=list)  # (process, address, device)
    processes: "count[int]" = field(default_factory=count)
    lock: threading.Lock = field(default_factory=threading.Lock)


class ScriptedCuda:
    """A `Cuda`. devices: the names of its GPUs. faults: what goes wrong; change it at any time.

    copies: (target, source, bytes) in the order in which they were done. gate: while cleared,
    `finish` waits. held: what has not been given back, in words.
    """

    def __init__(
        self,
        devices: Iterable[str] = ("scripted GPU",),
        *,
        faults: Iterable[Fault] = (),
        machine: "_Machine | None" = None,
    ) -> None:
        self._machine = machine or _Machine(tuple(devices), set(faults))
        self._process = next(self._machine.processes)
        self._streams = 0
        self.copies: list[tuple[int, int, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    @property
    def faults(self) -> set[Fault]:
        return self._machine.faults

    def process(self) -> "ScriptedCuda":
        """Another process on the same machine."""
        return ScriptedCuda(machine=self._machine)

    def held(self) -> list[str]:
        """What this process has not given back."""
        with self._machine.lock:
            mine = [a for a in self._machine.memory.values() if a.owner == self._process]
        words = [f"{len(a.array)} bytes of {_place(a.device)}" for a in mine]
        words += [f"a handle of GPU {d}" for p, _, d in self._machine.opened if p == self._process]
        return sorted(words) + ["a stream"] * self._streams

    # -- Cuda ---------------------------------------------------------------------------------

    def devices(self) -> tuple[str, ...]:
        """See Cuda."""
        return self._machine.names

    def allocate(self, device: int, byte_size: int) -> int:
        """See Cuda."""
        self._require(device)
        self._fail_if("out-of-memory", "cudaMalloc: cudaErrorMemoryAllocation (out of memory)")
        return self._made(device, byte_size).address

    def free(self, device: int, address: int) -> None:
        """See Cuda."""
        if any(opened == address for _, opened, _ in self._machine.opened):
            raise CudaFault("cudaFree of memory that another process has open: undefined")
        self._taken(device, address)

    def allocate_host(self, device: int, byte_size: int) -> HostMemory:
        """See Cuda."""
        self._require(device)
        self._fail_if("no-host", "cudaHostAlloc: cudaErrorMemoryAllocation (out of memory)")
        made = self._made(-1, byte_size)
        return HostMemory(made.address, memoryview(made.array).cast("B"))

    def free_host(self, memory: HostMemory) -> None:
        """See Cuda."""
        memory.view.release()
        self._taken(-1, memory.address)

    def handle(self, device: int, address: int) -> bytes:
        """See Cuda."""
        self._fail_if("no-handle", "cudaIpcGetMemHandle: cudaErrorNotSupported")
        self._allocation(device, address)
        made = secrets.token_bytes(HANDLE_BYTES)
        self._machine.handles[made] = address
        return made

    def open_handle(self, device: int, handle: bytes) -> int:
        """See Cuda."""
        self._require(device)
        self._fail_if("ipc-refused", "cudaIpcOpenMemHandle: cudaErrorMapBufferObjectFailed")
        address = self._machine.handles.get(handle, 0)
        allocation = self._machine.memory.get(address)
        if allocation is None or allocation.owner == self._process:
            raise CudaFault("cudaIpcOpenMemHandle: cudaErrorInvalidResourceHandle")
        if allocation.device != device:
            raise CudaFault("cudaIpcOpenMemHandle: cudaErrorInvalidDevice (peer access)")
        self._machine.opened.append((self._process, address, device))
        return address

    def extent(self, device: int, address: int) -> int:
        """See Cuda."""
        found = self._machine.memory.get(address)
        if found is None or (self._process, address, device) not in self._machine.opened:
            raise CudaFault("cuMemGetAddressRange: CUDA_ERROR_NOT_FOUND")
        return found.end - address

    def close_handle(self, device: int, address: int) -> None:
        """See Cuda."""
        entry = (self._process, address, device)
        if entry not in self._machine.opened:
            raise CudaFault("cudaIpcCloseMemHandle: cudaErrorInvalidValue")
        self._machine.opened.remove(entry)

    def stream(self, device: int) -> Stream:
        """See Cuda."""
        self._require(device)
        self._streams += 1
        return _ScriptedStream(self)

    # -- memory -------------------------------------------------------------------------------

    def read(self, address: int, byte_size: int) -> bytes:
        """What lies there now. Raises CudaFault if it is not this process' to see."""
        self._reach(address, byte_size)
        return ctypes.string_at(address, byte_size)

    def write(self, address: int, data: bytes) -> None:
        """Put it there. Raises CudaFault as `read`."""
        self._reach(address, len(data))
        ctypes.memmove(address, data, len(data))

    def _copied(self, target: int, source: int, byte_size: int) -> None:
        data = self.read(source, byte_size)
        if "wrong-bytes" in self.faults:
            data = bytes((byte + 1) % 256 for byte in data)
        self.write(target, data)
        self.copies.append((target, source, byte_size))

    def _closed(self) -> None:
        self._streams -= 1

    def _made(self, device: int, byte_size: int) -> _Allocation:
        made = _Allocation(device, self._process, (ctypes.c_ubyte * byte_size)())
        with self._machine.lock:
            self._machine.memory[made.address] = made
        return made

    def _taken(self, device: int, address: int) -> None:
        self._allocation(device, address)
        with self._machine.lock:
            del self._machine.memory[address]

    def _allocation(self, device: int, address: int) -> _Allocation:
        found = self._machine.memory.get(address)
        if found is None or (found.device, found.owner) != (device, self._process):
            raise CudaFault(f"cudaErrorInvalidValue: {_place(device)} has nothing at that address")
        return found

    def _reach(self, address: int, byte_size: int) -> None:
        """Every byte lies in one allocation, which is ours or opened by us."""
        me = self._process
        with self._machine.lock:
            known = list(self._machine.memory.values())
            opened = {address for process, address, _ in self._machine.opened if process == me}
        for found in known:
            is_ours = found.owner == me or found.address in opened
            if is_ours and found.address <= address and address + byte_size <= found.end:
                return
        raise CudaFault(f"cudaErrorIllegalAddress: {byte_size} bytes outside of any memory")

    def _require(self, device: int) -> None:
        if not 0 <= device < len(self._machine.names):
            raise CudaFault(f"there is no GPU {device}; this process sees {len(self.devices())}")

    def _fail_if(self, fault: Fault, words: str) -> None:
        if fault in self.faults:
            raise CudaFault(words)


class _ScriptedStream:
    """See Stream. Copies are done by `finish`, so that whoever does not wait reads the old."""

    def __init__(self, cuda: ScriptedCuda) -> None:
        self._cuda = cuda
        self._begun: list[tuple[int, int, int]] = []

    def copy(self, target: int, source: int, byte_size: int) -> None:
        """See Stream."""
        self._begun.append((target, source, byte_size))

    def finish(self) -> None:
        """See Stream."""
        self._cuda.gate.wait()
        begun, self._begun = self._begun, []
        if "copy-error" in self._cuda.faults:
            raise CudaFault("cudaEventSynchronize: cudaErrorIllegalAddress, as the script says")
        for copy in begun:
            self._cuda._copied(*copy)  # noqa: SLF001  # two halves of one thing

    def close(self) -> None:
        """See Stream."""
        self._cuda._closed()  # noqa: SLF001


def _place(device: int) -> str:
    return "host memory" if device < 0 else f"GPU {device}"

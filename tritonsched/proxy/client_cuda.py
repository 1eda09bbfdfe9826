"""A client's CUDA shared-memory region in a merged batch. Rule: its bytes never leave the GPUs.

What is read there becomes a part of the batch (`DevicePlace`), which the backend copies from device
to device; what is to be written there is a place of an output, which the backend fills before the
answer is heard of. A batch that does not go to a GPU cannot use it: such calls go alone.
"""

from collections.abc import Callable, Iterable

from tritonsched.backend.batch_call import DevicePlace
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.cuda_clients import ClientMemory
from tritonsched.errors import RegionFault
from tritonsched.tensors import Buffer, ShmRef, byte_size

HasPool = Callable[[str], bool]


class CudaClientRegion:
    """A region as it was registered; `memory` has all its bytes."""

    __slots__ = ("_memory",)

    def __init__(self, memory: ClientMemory) -> None:
        self._memory = memory

    @property
    def is_whole(self) -> bool:
        """Device memory does not shrink."""
        return True

    def holds(self, ref: ShmRef) -> bool:
        """Whether the place lies in what was registered."""
        return ref.offset + ref.byte_size <= self._memory.byte_size

    def read(self, ref: ShmRef) -> DevicePlace:
        """Where the bytes are."""
        return DevicePlace(self._memory.address + ref.offset, ref.byte_size, self._memory)

    def place(self, ref: ShmRef, size: int) -> DevicePlace | None:
        """Where `size` bytes are to be written; None if the client has not so much room there."""
        if size > ref.byte_size:
            return None
        return DevicePlace(self._memory.address + ref.offset, size, self._memory)

    def write(self, ref: ShmRef, data: Buffer) -> None:
        """They were written on the device, if they fit. Raises RegionFault if they do not."""
        if len(data) > ref.byte_size:
            raise RegionFault(f"shared memory region '{ref.region}' has no {len(data)} bytes there")


def reaches(info: ModelInfo, outputs: Iterable[str], has_pool: HasPool) -> bool:
    """Whether batches of the model go to GPUs, wherever they run, and these of its outputs are of
    known size: only then may they be written where a client wants them.
    """
    return all(map(has_pool, info.devices)) and all(
        min(info.outputs[name].dims, default=0) >= 0
        and byte_size(info.outputs[name].datatype, ()) is not None
        for name in outputs
    )

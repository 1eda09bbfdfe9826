"""A merged call and its answer, as the backend sees them. Rule: views, not copies; each part of an
input is a client's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from tritonsched.errors import RegionFault, TritonschedError
from tritonsched.tensors import Buffer, ParameterValue, Tensor


@dataclass(frozen=True, slots=True)
class DevicePlace:
    """Bytes in a GPU's memory. address: CUDA's; owner: what keeps it valid while it is used."""

    address: int
    byte_size: int
    owner: Any

    def __len__(self) -> int:
        return self.byte_size


Part = Buffer | DevicePlace


def unreachable() -> RegionFault:
    """The batch needs a GPU's memory and does not go there."""
    return RegionFault("a client's CUDA region cannot be reached from where the batch goes")


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that triples the cost of making one
class BatchInput:
    """One input of a batch, in parts that stand one after the other along dimension 0."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def __init__(
        self, name: str, datatype: str, shape: tuple[int, ...], parts: tuple[Part, ...]
    ) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.parts = parts

    def joined(self) -> bytes:
        """All its bytes. Raises RegionFault if some of them lie on a GPU."""
        try:
            return b"".join(cast("tuple[Buffer, ...]", self.parts))
        except TypeError as error:  # dearer to look for beforehand, in every part of every batch
            raise unreachable() from error


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that triples the cost of making one
class BatchOutput:
    """One output asked for. row_bytes: bytes of one row if the model fixes it, else None.

    places: where parts of it are to be written on a GPU, by the byte they begin at.
    """

    name: str
    row_bytes: int | None
    places: tuple[tuple[int, DevicePlace], ...] = ()

    def __init__(
        self, name: str, row_bytes: int | None, places: tuple[tuple[int, DevicePlace], ...] = ()
    ) -> None:
        self.name = name
        self.row_bytes = row_bytes
        self.places = places


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that triples the cost of making one
class BatchCall:
    """A merged call as the backend sends it. device: the scheduler's, empty if none is meant."""

    id: int
    model: str
    version: str
    rows: int
    inputs: tuple[BatchInput, ...]
    outputs: tuple[BatchOutput, ...]
    parameters: Mapping[str, ParameterValue]
    device: str = ""

    def __init__(  # noqa: PLR0917
        self,
        id: int,  # noqa: A002
        model: str,
        version: str,
        rows: int,
        inputs: tuple[BatchInput, ...],
        outputs: tuple[BatchOutput, ...],
        parameters: Mapping[str, ParameterValue],
        device: str = "",
    ) -> None:
        self.id = id
        self.model = model
        self.version = version
        self.rows = rows
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
        self.device = device


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that triples the cost of making one
class BatchReply:
    """A merged answer. Its tensors may lie in shared memory: call `release` once, after reading."""

    model: str
    version: str
    outputs: tuple[Tensor, ...]
    release: Callable[[], None]

    def __init__(
        self, model: str, version: str, outputs: tuple[Tensor, ...], release: Callable[[], None]
    ) -> None:
        self.model = model
        self.version = version
        self.outputs = outputs
        self.release = release


BatchDone = Callable[[BatchReply | TritonschedError], None]
"""Hears how a batch ended, once: BackendError, MalformedAnswer and TritonUnavailable are errors."""

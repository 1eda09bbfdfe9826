"""Request bodies, built before the run: the model's own inputs, random or real pictures. Rule:
pure.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.bench.plan import LoadClass
from tritonsched.tensors import ITEM_BYTES

PAYLOADS = 16  # distinct ones, so that no cache on the way makes the run easier
PICTURES = Path(__file__).parent.parent / "data" / "pictures" / "pictures.npz"
_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}

Inputs = dict[str, tuple[str, tuple[int, ...], bytes]]


@dataclass(frozen=True, slots=True)
class Wording:
    """How a deadline and a class are told. timeout: as the v2 parameter, in µs; header: as
    `x-request-deadline-ms`; call_deadline: as the gRPC call's own.
    """

    timeout: bool
    header: bool
    send_class: bool
    call_deadline: bool = False

    def headers(self, load_class: LoadClass) -> tuple[tuple[str, str], ...]:
        """Headers or metadata of a request of the class."""
        made: list[tuple[str, str]] = []
        if self.header and load_class.deadline_ms is not None:
            made.append(("x-request-deadline-ms", f"{load_class.deadline_ms:g}"))
        if self.send_class:
            made.append(("x-tritonsched-class", load_class.name))
        return tuple(made)

    def parameters(self, load_class: LoadClass) -> dict[str, int]:
        """The v2 parameters of a request of the class."""
        told_ms = load_class.timeout_ms or load_class.deadline_ms
        made: dict[str, int] = {}
        if self.timeout and told_ms is not None:
            made["timeout"] = int(told_ms * 1e3)
        if load_class.priority:
            made["priority"] = load_class.priority
        return made

    def call_deadline_s(self, load_class: LoadClass) -> float | None:
        """When the client itself gives up; None: never."""
        if not self.call_deadline or load_class.deadline_ms is None:
            return None
        return load_class.deadline_ms / 1e3


def inputs(
    info: ModelInfo,
    *,
    rows: int,
    shapes: Mapping[str, tuple[int, ...]],
    pictures: bool,
    seed: int,
    sets: int = PAYLOADS,
) -> list[Inputs]:
    """So many sets of inputs. shapes: for inputs with variable dimensions, without the rows.

    Raises ValueError if the model's inputs cannot be made up.
    """
    rng = np.random.default_rng(seed)
    images = _pictures() if pictures else iter(())
    return [
        {
            tensor.name: _input(tensor, _shape(info, tensor, rows, shapes), rng, images)
            for tensor in info.inputs.values()
        }
        for _ in range(sets)
    ]


def _pictures() -> Iterator[NDArray[np.uint8]]:
    """The packaged pictures, again and again."""
    with np.load(PICTURES, allow_pickle=False) as data:
        images = data["pictures"]
    while True:
        yield from images


def _shape(
    info: ModelInfo, tensor: TensorInfo, rows: int, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    dims = shapes.get(tensor.name, tensor.dims)
    if any(dim < 0 for dim in dims):
        raise ValueError(
            f"input {tensor.name!r} has dimensions {list(dims)}; name them with --shape"
        )
    return (rows, *dims) if info.max_batch_size else dims


def _input(
    tensor: TensorInfo,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    images: Iterator[NDArray[np.uint8]],
) -> tuple[str, tuple[int, ...], bytes]:
    if tensor.datatype not in (*ITEM_BYTES, "BYTES"):
        raise ValueError(f"input {tensor.name!r}: cannot make up {tensor.datatype} tensors")
    taken = [image for _, image in zip(range(shape[0]), images, strict=False)]
    if not taken:
        return tensor.datatype, shape, _random(tensor.datatype, shape, rng)
    stacked = np.stack(taken)
    if tensor.datatype != "UINT8" or stacked.shape != shape:
        raise ValueError(
            f"the pictures are UINT8 {list(stacked.shape)}, input {tensor.name!r} is not"
        )
    return tensor.datatype, shape, stacked.tobytes()


def _random(datatype: str, shape: tuple[int, ...], rng: np.random.Generator) -> bytes:
    if datatype in _FLOATS:
        return rng.standard_normal(shape).astype(_FLOATS[datatype]).tobytes()
    if datatype == "BYTES":
        return b"".join(map(_string, rng.integers(10**7, 10**8, int(np.prod(shape)))))
    count = int(np.prod(shape)) * ITEM_BYTES[datatype]
    return b"\0" * count if datatype in ("BOOL", "BF16") else rng.bytes(count)


def _string(number: int) -> bytes:
    """An element of a BYTES tensor: eight digits, which models take for text and for a number."""
    return b"\x08\0\0\0%d" % number


def grpc_message(model: str, made: Inputs, parameters: Mapping[str, int]) -> bytes:
    """A ModelInferRequest with raw contents."""
    request = pb.ModelInferRequest(model_name=model)
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    for name, (datatype, shape, data) in made.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    message: bytes = request.SerializeToString()
    return message


def http_body(made: Inputs, parameters: Mapping[str, int]) -> tuple[int, bytes]:
    """The length of the JSON head, and head and binary tail; outputs are asked for in binary."""
    tensors = [
        {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "parameters": {"binary_data_size": len(data)},
        }
        for name, (datatype, shape, data) in made.items()
    ]
    told = {"binary_data_output": True, **parameters}
    head = json.dumps({"inputs": tensors, "parameters": told}).encode()
    return len(head), head + b"".join(data for _, _, data in made.values())

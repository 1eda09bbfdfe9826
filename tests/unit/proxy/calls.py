"""Builders of calls and models for tests of the live driver."""

from typing import Any

from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.tensors import DeadlineHints, InferCall, Tensor, Wire, byte_size

ECHO = ModelInfo(
    name="echo",
    version="",
    max_batch_size=8,
    inputs={"INPUT": TensorInfo("INPUT", "UINT8", (2,))},
    outputs={"OUTPUT": TensorInfo("OUTPUT", "UINT8", (2,))},
    devices=("cpu:echo:0",),
)


def tensor(
    rows: int = 1, *, name: str = "INPUT", datatype: str = "UINT8", tail: tuple[int, ...] = (2,)
) -> Tensor:
    """A tensor whose bytes count up from 0."""
    shape = (rows, *tail)
    size = byte_size(datatype, shape)
    assert size is not None
    return Tensor(name, datatype, shape, bytes(index % 256 for index in range(size)))


def call(*inputs: Tensor, **fields: Any) -> InferCall:
    """A merge-clean gRPC call to `echo`."""
    given: dict[str, Any] = {
        "wire": Wire.GRPC,
        "model": "echo",
        "version": "",
        "id": "",
        "received_ns": 0,
        "raw": b"original",
        "inputs": inputs or (tensor(),),
    }
    return InferCall(**(given | fields))


def hints(**fields: Any) -> DeadlineHints:
    return DeadlineHints(**fields)

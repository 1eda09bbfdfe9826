"""What Triton says of a model, reduced to what scheduling and merging need. Rule: pure.

Source: ModelConfig of the KServe v2 gRPC API with Triton's extensions; reference rules for merging
in DESIGN.md ("Merging").
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A declared input or output. dims: without the batch dimension, -1 where variable."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as Triton would serve it.

    max_batch_size: Triton's; 0 means the model does not batch.
    lone_reason: why its calls can never be merged; empty if they can.
    devices: what its batches occupy, one batch each (see `devices_of`).
    queue_delay_ns: delay of Triton's own dynamic batcher; None if that is off.
    """

    name: str
    version: str
    max_batch_size: int
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    devices: tuple[str, ...]
    lone_reason: str = ""
    queue_delay_ns: int | None = None
    accuracy: float = 1.0

"""What Triton says of a model, reduced to what scheduling and merging need. Rule: pure.

Why a model's calls can never share a batch (`ModelInfo.lone_reason`; the first that holds):

| reason           | configuration                          | because                              |
|------------------|----------------------------------------|--------------------------------------|
| `no-batching`    | max_batch_size <= 1                    | the first dimension is data, or one  |
| `decoupled`      | model_transaction_policy.decoupled     | any number of answers to a call      |
| `sequence`       | sequence_batching                      | Triton refuses more than one row     |
| `ensemble`       | ensemble_scheduling                    | its steps may be any of the others   |
| `response-cache` | response_cache.enable                  | a joined call never hits the cache   |
| `batch-input`    | batch_input                            | an input made from the whole batch   |
| `batch-output`   | batch_output                           | outputs cut by the whole batch       |
| `shape-tensor`   | is_shape_tensor                        | values, not rows, must agree         |
| `format`         | is_non_linear_format_io                | rows do not lie one after the other  |
| `ragged`         | allow_ragged_batch                     | rows of different lengths            |

Source: ModelConfig of the KServe v2 gRPC API with Triton's extensions (model_config.proto).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

ACCURACY_KEY = "tritonsched_accuracy"
DEVICE_KEY = "tritonsched_device"
SEQUENCE_IDLE_US = 1_000_000  # Triton's default, where the configuration says 0
_FORM = (
    "name", "version", "max_batch_size", "inputs", "outputs", "lone_reason", "steps",
    "is_decoupled",
)  # fmt: skip
"""What calls of a model have to agree with."""


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
    steps: an ensemble's models; its devices are theirs (`TritonBackend.model_info`).
    is_decoupled: it answers any number of times.
    idle_ns: how long Triton keeps a sequence of it without a call; 0 if it has none.
    queue_delay_ns: delay of Triton's own dynamic batcher; None if that is off.
    config_sha256: of the whole configuration, to tell whether a profile is of this model.
    servers: of each device, where there are several servers (`fleet`).
    variants: the Triton models that serve it, if it is not one itself (proxy/families.py).
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
    steps: tuple[str, ...] = ()
    is_decoupled: bool = False
    config_sha256: str = field(default="", compare=False)
    servers: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    idle_ns: int = 0

    def is_like(self, other: "ModelInfo") -> bool:
        """Whether a call means the same to both, wherever they run."""
        return all(getattr(self, name) == getattr(other, name) for name in _FORM)


def model_info(config: Any, version: str) -> ModelInfo:  # pb.ModelConfig has no stubs
    """The parts of a model's configuration that count. version: as the client named it."""
    return ModelInfo(
        name=config.name,
        version=version,
        max_batch_size=config.max_batch_size,
        inputs={tensor.name: _tensor(tensor, optional=tensor.optional) for tensor in config.input},
        outputs={tensor.name: _tensor(tensor) for tensor in config.output},
        devices=devices_of(config),
        lone_reason=_lone_reason(config),
        queue_delay_ns=_queue_delay_ns(config),
        accuracy=_accuracy(config),
        steps=tuple(step.model_name for step in config.ensemble_scheduling.step),
        is_decoupled=config.model_transaction_policy.decoupled,
        idle_ns=_idle_ns(config),
        config_sha256=hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest(),
    )


def _tensor(tensor: Any, *, optional: bool = False) -> TensorInfo:
    name = pb.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    datatype = "BYTES" if name == "STRING" else name
    return TensorInfo(tensor.name, datatype, tuple(tensor.dims), optional=optional)


def _idle_ns(config: Any) -> int:
    if not config.HasField("sequence_batching"):
        return 0
    return 1000 * (config.sequence_batching.max_sequence_idle_microseconds or SEQUENCE_IDLE_US)


def _lone_reason(config: Any) -> str:
    checks = (
        ("sequence", config.HasField("sequence_batching")),
        ("decoupled", config.model_transaction_policy.decoupled),
        ("ensemble", config.HasField("ensemble_scheduling")),
        ("no-batching", config.max_batch_size <= 1),
        ("response-cache", config.response_cache.enable),
        ("batch-input", bool(config.batch_input)),
        ("batch-output", bool(config.batch_output)),
        ("shape-tensor", any(t.is_shape_tensor for t in (*config.input, *config.output))),
        (
            "format",
            any(t.is_non_linear_format_io for t in (*config.input, *config.output)),
        ),
        ("ragged", any(t.allow_ragged_batch for t in config.input)),
    )
    return next((reason for reason, holds in checks if holds), "")


def devices_of(config: Any) -> tuple[str, ...]:
    """What the model's batches occupy: a GPU is shared by its models, a CPU instance is its own.

    The parameter `tritonsched_device` (names, comma-separated) overrides both.
    """
    named = config.parameters[DEVICE_KEY].string_value if DEVICE_KEY in config.parameters else ""
    given = [name.strip() for name in named.split(",") if name.strip()]
    if given:
        return _unique(given)
    devices: list[str] = []
    cpu = 0
    for group in config.instance_group:
        if group.passive:
            continue  # loaded, but never given a batch
        if group.gpus and group.kind != pb.ModelInstanceGroup.KIND_CPU:
            devices += [f"gpu:{gpu}" for gpu in group.gpus]
        else:
            count = max(1, group.count)
            devices += [f"cpu:{config.name}:{index}" for index in range(cpu, cpu + count)]
            cpu += count
    return _unique(devices) or (f"cpu:{config.name}:0",)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _queue_delay_ns(config: Any) -> int | None:
    if not config.HasField("dynamic_batching"):
        return None
    return int(config.dynamic_batching.max_queue_delay_microseconds) * 1_000


def _accuracy(config: Any) -> float:
    """In (0, 1]; a published percentage or a fraction. 1 if absent or senseless."""
    if ACCURACY_KEY not in config.parameters:
        return 1.0
    try:
        value = float(config.parameters[ACCURACY_KEY].string_value)
    except ValueError:
        return 1.0
    fraction = value / 100.0 if value > 1.0 else value
    return fraction if 0.0 < fraction <= 1.0 else 1.0

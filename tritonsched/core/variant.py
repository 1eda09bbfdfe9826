"""What can serve a model, and where. Rule: plain facts; nothing here decides.

A Device runs one batch at a time: a GPU shared by all models on it, or one CPU instance of a model.
Concurrent batches on a GPU buy no throughput and cost predictability (DeepRT section 2; DESIGN.md
3).
"""

from dataclasses import dataclass
from enum import StrEnum


class ServerState(StrEnum):
    """Whether Triton can take work; `DRAINING` is the sidecar's own shutdown."""

    READY = "ready"
    AWAY = "away"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Variant:
    """A model as Triton serves it.

    rows_max: Triton's max_batch_size; 1 for a model that does not batch.
    devices: names of the devices that can run it, at least one.
    accuracy: relative worth of its answers, in (0, 1].
    servers: the server of each device, in their order; empty: all are of the one without a name.
    """

    model: str
    rows_max: int
    devices: tuple[str, ...]
    accuracy: float = 1.0
    servers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rows_max < 1:
            raise ValueError(
                f"model {self.model!r}: rows_max {self.rows_max}; at least 1 is needed"
            )
        if not self.devices:
            raise ValueError(f"model {self.model!r}: no device can run it")
        if not 0 < self.accuracy <= 1:
            raise ValueError(f"model {self.model!r}: accuracy {self.accuracy} is not in (0, 1]")
        if self.servers and len(self.servers) != len(self.devices):
            raise ValueError(
                f"model {self.model!r}: {len(self.servers)} servers for {len(self.devices)} "
                "devices; name one for each, or none"
            )

    def places(self) -> tuple[tuple[str, str], ...]:
        """(device, server) pairs."""
        return tuple(zip(self.devices, self.servers or ("",) * len(self.devices), strict=True))


@dataclass(frozen=True, slots=True)
class Way:
    """A Triton model that can serve a request. worth: of its answers beside the best one's."""

    model: str
    worth: float = 1.0


@dataclass(frozen=True, slots=True)
class Family:
    """A model that clients ask for and several Triton models serve, one as well as another.

    variants: names of Triton models; those that Triton does not serve just now do not count.
    """

    model: str
    variants: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise ValueError(f"model {self.model!r}: variants must be named, each once")

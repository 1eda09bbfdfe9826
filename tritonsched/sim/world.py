"""A simulated Triton: devices that run one batch at a time, with noise, overruns and faults.

Rule: what happens to a batch is a pure function of the seed, the batch's id, model and rows, and of
when it starts (and, for a cold start, of being the first); no call draws from a shared source of
chance. So a scripted backend of the live driver can ask a world of the same seed and meet the same
fates, which is what the twin test rests on.

A batch sent at t reaches its device at t + rtt/2, waits there for the batch before it (first in,
first out), runs, and its answer is back rtt/2 after its end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from struct import Struct

from tritonsched.core.batch import Batch, Completion
from tritonsched.core.request import Request
from tritonsched.core.tuning import RTT_NS

_WORDS = Struct("<4I")
NS_MIN = 1_000  # no batch is shorter; a latency profile counts shorter times as this, too


class Fate(Enum):
    """What Triton does with a batch."""

    OK = "ok"
    FAILED = "failed"  # executed to an error, which Triton reports
    LOST = "lost"  # Triton went away while it held the batch


ExecNs = Callable[[int], int]
"""Nominal nanoseconds of a batch by its rows."""


@dataclass(frozen=True, slots=True)
class SimModel:
    """A model of the simulated Triton.

    exec_ns: on every device that `on_device` does not name. devices: names; models that name the
    same device share it. servers: of each device, in their order; empty: all of one.
    accuracy: of its answers, where it is one of several variants.
    """

    name: str
    rows_max: int
    exec_ns: ExecNs
    devices: tuple[str, ...] = ("gpu0",)
    on_device: Mapping[str, ExecNs] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    accuracy: float = 1.0

    def times(self) -> dict[str, ExecNs]:
        """By device."""
        return {device: self.exec_on(device) for device in self.devices}

    def exec_on(self, device: str) -> ExecNs:
        return self.on_device.get(device, self.exec_ns)


def affine(base_ns: int, row_ns: int) -> ExecNs:
    """a + b * rows: what the emulated GPU does."""
    return lambda rows: base_ns + row_ns * rows


def table(points: Mapping[int, int]) -> ExecNs:
    """Linear between measured sizes, flat before the first, proportional after the last one."""
    sizes = sorted(points)

    def exec_ns(rows: int) -> int:
        if rows >= sizes[-1]:
            return points[sizes[-1]] * rows // sizes[-1]
        high = next(size for size in sizes if size >= rows)
        low = max((size for size in sizes if size < rows), default=high)
        share = (rows - low) / (high - low) if high > low else 0.0
        return points[low] + round(share * (points[high] - points[low]))

    return exec_ns


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, and how often.

    jitter: sigma of the log of execution times (0.03: 3 %). overrun_rate: share of batches that
    take 1.5 to 3 times as long. failure_rate: share of merged batches that Triton fails;
    alone_failure_rate: of batches of one that are not to be merged.
    throttles: (from time, factor on execution times), ascending; a batch keeps the speed it began
    with. away: [start, end) during which Triton is gone; batches it held at the start are lost,
    which the sidecar sees half a round trip later. gone: the same of one of several servers, by
    its name.
    slow_first: factor on the first batch of each model on each device (cold start).
    """

    jitter: float = 0.0
    overrun_rate: float = 0.0
    failure_rate: float = 0.0
    alone_failure_rate: float = 0.0
    throttles: Sequence[tuple[int, float]] = ()
    away: Sequence[tuple[int, int]] = ()
    gone: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    slow_first: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """When the answer of a batch is back, and what it is."""

    at_ns: int
    fate: Fate

    def completion(self, batch: Batch, moved: Sequence[Request] = ()) -> Completion:
        """As the live driver words it: a failed merge is taken apart, of a lost batch `moved` is
        sent again.
        """
        if self.fate is Fate.LOST:
            return Completion.lost(batch, moved)
        retried = self.fate is Fate.FAILED and not batch.requests[0].alone
        return Completion(batch.id, ok=self.fate is Fate.OK, retried=retried)


class World:
    """The simulated Triton. State: when each device is free, and how long it was busy."""

    def __init__(
        self,
        models: Sequence[SimModel],
        *,
        seed: int,
        rtt_ns: int = RTT_NS,
        faults: Faults | None = None,
    ) -> None:
        self.models = {model.name: model for model in models}
        self.rtt_ns = rtt_ns
        self.faults = faults or Faults()
        self.busy_ns: dict[str, int] = {device: 0 for model in models for device in model.devices}
        self._seed = seed
        self._free_ns = dict.fromkeys(self.busy_ns, 0)
        self._warm: set[tuple[str, str]] = set()
        self._nominal: dict[tuple[str, str, int], int] = {}

    def send(self, batch: Batch, now: int) -> Answer:
        """The batch leaves the sidecar now."""
        there_ns = self.rtt_ns // 2
        start_ns = max(now + there_ns, self._free_ns[batch.device])
        end_ns = start_ns + self.exec_ns(batch, start_ns)
        answer_ns = end_ns + self.rtt_ns - there_ns
        for gone_ns, back_ns in (*self.faults.away, *self.faults.gone.get(batch.server, ())):
            if gone_ns < answer_ns and now < back_ns:
                self._free_ns[batch.device] = back_ns
                return Answer(max(gone_ns, now + there_ns) + self.rtt_ns - there_ns, Fate.LOST)
        self._free_ns[batch.device] = end_ns
        self.busy_ns[batch.device] += end_ns - start_ns
        return Answer(answer_ns, self._fate(batch))

    def exec_ns(self, batch: Batch, start_ns: int) -> int:
        """How long the batch has its device when it starts then."""
        faults = self.faults
        factor = 1.0
        if faults.jitter or faults.overrun_rate:
            angle, radius, overrun, size = self._chances("time", batch)
            normal = math.sqrt(-2.0 * math.log(1.0 - radius)) * math.cos(2 * math.pi * angle)
            factor = math.exp(normal * faults.jitter)
            if overrun < faults.overrun_rate:
                factor *= 1.5 + 1.5 * size
        if faults.throttles:
            factor *= next((f for at, f in reversed(faults.throttles) if at <= start_ns), 1.0)
        if faults.slow_first != 1.0 and (batch.model, batch.device) not in self._warm:
            self._warm.add((batch.model, batch.device))
            factor *= faults.slow_first
        return max(NS_MIN, round(self._nominal_ns(batch) * factor))

    def _fate(self, batch: Batch) -> Fate:
        alone = batch.requests[0].alone
        rate = self.faults.alone_failure_rate if alone else self.faults.failure_rate
        failed = rate > 0 and self._chances("fate", batch)[0] < rate
        return Fate.FAILED if failed else Fate.OK

    def _nominal_ns(self, batch: Batch) -> int:
        key = (batch.model, batch.device, batch.rows)
        known = self._nominal.get(key)
        if known is None:
            known = self._nominal[key] = self.models[batch.model].exec_on(batch.device)(batch.rows)
        return known

    def _chances(self, purpose: str, batch: Batch) -> tuple[float, float, float, float]:
        """Four numbers in [0, 1) that only the seed, the purpose and the batch decide."""
        key = f"{self._seed}/{purpose}/{batch.id}/{batch.model}/{batch.rows}"
        words = _WORDS.unpack(blake2b(key.encode(), digest_size=16).digest())
        one, two, three, four = (word * 2.0**-32 for word in words)
        return one, two, three, four

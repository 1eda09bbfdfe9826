"""Workloads: who sends what, when. Rule: the same seed gives the same requests, whatever the rest.

A stream has one model, one arrival process, a mix of classes and of rows; a workload is some
streams and the simulated models they need. Each stream has dice of its own, so that adding one does
not change another.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import count
from types import MappingProxyType
from typing import TypeVar

from tritonsched.core.request import NEVER_NS, Request, SloClass
from tritonsched.sim.world import SimModel, affine

Gaps = Iterator[int]
"""Nanoseconds from one arrival to the next; the first one counts from time 0."""
Arrivals = Callable[[random.Random], Gaps]
S = 1_000_000_000
MS = 1_000_000
T = TypeVar("T")


def poisson(rate: float) -> Arrivals:
    """Independent arrivals, `rate` a second on average."""
    return gamma(rate, cv=1.0)


def gamma(rate: float, *, cv: float) -> Arrivals:
    """Independent gaps with coefficient of variation `cv`; above 1: bursts."""

    def gaps(dice: random.Random) -> Gaps:
        shape = 1.0 / (cv * cv)
        while True:
            yield round(dice.gammavariate(shape, S / (rate * shape)))

    return gaps


def constant(rate: float) -> Arrivals:
    """Equal gaps, the first arrival one gap after 0."""

    def gaps(_: random.Random) -> Gaps:
        gap = round(S / rate)
        while True:
            yield gap

    return gaps


def periodic(period_ns: int, *, jitter_ns: int = 0) -> Arrivals:
    """A camera: a random phase, then one arrival a period, each up to `jitter_ns` late."""
    assert 0 <= jitter_ns < period_ns, "frames that overtake each other are not a period"

    def gaps(dice: random.Random) -> Gaps:
        phase, last = dice.randrange(period_ns), 0
        for frame in count():
            at_ns = phase + frame * period_ns + dice.randint(0, jitter_ns)
            yield at_ns - last
            last = at_ns

    return gaps


@dataclass(frozen=True, slots=True)
class Stream:
    """One source of requests.

    classes, rows, signatures: what a request may be, each with its share (any positive scale).
    alone_share: share of requests that must not be merged.
    """

    model: str
    arrivals: Arrivals
    classes: Sequence[tuple[SloClass, float]]
    rows: Sequence[tuple[int, float]] = ((1, 1.0),)
    signatures: Sequence[tuple[int, float]] = ((0, 1.0),)
    alone_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Streams and the models they are for."""

    models: Sequence[SimModel]
    streams: Sequence[Stream]

    def requests(self, *, duration_ns: int, seed: int) -> Iterator[Request]:
        """All requests up to `duration_ns`, in order of arrival, numbered from 1."""
        sources = [
            _arrivals(stream, index, duration_ns, seed) for index, stream in enumerate(self.streams)
        ]
        for number, (_, _, make) in enumerate(merge(*sources), start=1):
            yield make(number)


_Arrival = tuple[int, int, Callable[[int], Request]]


def _arrivals(stream: Stream, index: int, duration_ns: int, seed: int) -> Iterator[_Arrival]:
    dice = random.Random(f"{seed}/stream/{index}")  # noqa: S311  # a simulator's dice
    now = 0
    for gap in stream.arrivals(dice):
        now += gap
        if now >= duration_ns:
            return
        yield now, index, _maker(stream, now, dice)


def _maker(stream: Stream, now: int, dice: random.Random) -> Callable[[int], Request]:
    slo = _pick(stream.classes, dice)
    rows = _pick(stream.rows, dice)
    signature = _pick(stream.signatures, dice)
    alone = dice.random() < stream.alone_share
    deadline = NEVER_NS
    if slo.relative_deadline_ns < NEVER_NS:
        deadline = now + slo.relative_deadline_ns

    def make(number: int) -> Request:
        return Request(
            number, stream.model, slo.name, signature, rows, now, deadline, slo.weight, alone
        )

    return make


def _pick(choices: Sequence[tuple[T, float]], dice: random.Random) -> T:
    values, shares = zip(*choices, strict=True)
    chosen: T = dice.choices(values, shares)[0]
    return chosen


TIGHT_PEAK_RATE = 32 / 24.2e-3
"""Rows a second of the emulated GPU at its best: 32 rows in 5 ms + 32 * 0.6 ms; about 1322."""


def tight(load: float) -> Workload:
    """The overload workload: 30 % have 30 ms, 70 % have 100 ms; `load` x 1322 requests a second."""
    classes = ((SloClass("tight", 30 * MS), 0.3), (SloClass("loose", 100 * MS), 0.7))
    model = SimModel("gpu", rows_max=32, exec_ns=affine(5 * MS, 600_000))
    return Workload((model,), (Stream("gpu", poisson(load * TIGHT_PEAK_RATE), classes),))


def patient(load: float) -> Workload:
    """The same GPU for clients that give no deadline: what a fresh installation sees."""
    model = SimModel("gpu", rows_max=32, exec_ns=affine(5 * MS, 600_000))
    classes = ((SloClass("default"), 1.0),)
    return Workload((model,), (Stream("gpu", poisson(load * TIGHT_PEAK_RATE), classes),))


WORKLOADS: Mapping[str, Callable[[float], Workload]] = MappingProxyType(
    {"patient": patient, "tight": tight}
)
"""Named workloads, each by its load: 1.0 is the limit of the device."""

"""Workloads: who sends what, when. Rule: the same seed gives the same requests, whatever the rest.

A stream has one model, one arrival process, a mix of classes and of rows; a workload is some
streams and the simulated models they need. Each stream has dice of its own, so that adding one does
not change another. A class is a tenant, too (scheduling study 4.12).
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import accumulate
from types import MappingProxyType
from typing import Generic, TypeVar

from tritonsched.core.request import NEVER_NS, Request, SloClass
from tritonsched.sim.arrivals import Arrivals, poisson
from tritonsched.sim.world import SimModel, affine

S = 1_000_000_000
MS = 1_000_000
T = TypeVar("T")


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
    """Streams and the models they are for. families: models asked for that several others serve,
    one as well as another; all others are asked for by their own names.
    """

    models: Sequence[SimModel]
    streams: Sequence[Stream]
    families: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def asked(self) -> dict[str, list[SimModel]]:
        """Models by the name that requests have; of a family the most accurate first."""
        hidden = {name for variants in self.families.values() for name in variants}
        made = {model.name: [model] for model in self.models if model.name not in hidden}
        for family, variants in self.families.items():
            of_it = [model for model in self.models if model.name in variants]
            made[family] = sorted(of_it, key=lambda model: -model.accuracy)
        return made

    def fixed(self) -> list[SimModel]:
        """As a server without variants has them: each family is its most accurate one."""
        return [replace(found[0], name=name) for name, found in self.asked().items()]

    def requests(self, *, duration_ns: int, seed: int) -> Iterator[Request]:
        """All requests up to `duration_ns`, in order of arrival, numbered from 1."""
        sources = [
            _arrivals(stream, index, duration_ns, seed) for index, stream in enumerate(self.streams)
        ]
        models = [stream.model for stream in self.streams]
        for number, (now, index, slo, signature, rows, alone) in enumerate(merge(*sources), 1):
            deadline = slo.relative_deadline_ns
            if deadline < NEVER_NS:
                deadline += now
            yield Request(
                number, models[index], slo.name, signature, rows, now, deadline, slo.weight, alone,
                tenant=slo.name,
            )  # fmt: skip


_Arrival = tuple[int, int, SloClass, int, int, bool]
"""Time, number of the stream (these two differ between any two in a merge), and what it is."""


def _arrivals(stream: Stream, index: int, duration_ns: int, seed: int) -> Iterator[_Arrival]:
    dice = random.Random(f"{seed}/stream/{index}")  # noqa: S311  # a simulator's dice
    slos, rows, signatures = _Mix(stream.classes), _Mix(stream.rows), _Mix(stream.signatures)
    now = 0
    for gap in stream.arrivals(dice):
        now += gap
        if now >= duration_ns:
            return
        alone = stream.alone_share > 0 and dice.random() < stream.alone_share
        yield now, index, slos.draw(dice), signatures.draw(dice), rows.draw(dice), alone


class _Mix(Generic[T]):
    """Values with shares of any positive scale. One value costs no draw."""

    __slots__ = ("_steps", "_values")

    def __init__(self, choices: Sequence[tuple[T, float]]) -> None:
        self._values = [value for value, _ in choices]
        self._steps = list(accumulate(share for _, share in choices))

    def draw(self, dice: random.Random) -> T:
        values, steps = self._values, self._steps
        if len(values) == 1:
            return values[0]
        return values[min(bisect_right(steps, dice.random() * steps[-1]), len(values) - 1)]


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

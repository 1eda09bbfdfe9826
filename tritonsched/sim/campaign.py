"""Many runs: workloads x loads x seeds x contenders, and what they come to.

Rule: a trace is one task, all contenders on it; so the bound and Triton's sweep are made once, and
any number of processes gives the same figures. A mean over seeds has its 95 % confidence interval,
1.96 s / sqrt(n); with one seed it has none, which is shown as such.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from tritonsched.core.request import Outcome
from tritonsched.sim.experiment import Run, Trace, bound_of, default_load, run, tuning_for
from tritonsched.sim.record import Bar

S = 1_000_000_000
MS = 1_000_000
CURVE_POINTS = 200  # of a distribution, which is all that is kept of a run's answers
WINDOW_NS = (S // 2, S // 2 + 250 * MS)  # what the chart of the devices shows
FIGURES = {
    "value": "utility, as a share of the clairvoyant bound",
    "on_time": "in time, of all arrivals",
    "goodput": "in time, a second",
    "miss": "late or never finished, of all that were not refused",
    "refused": "of all arrivals",
    "refusal_at": "median time of a refusal, as a share of the deadline",
    "worst": "in time, of the tenant (a class, or a model) that fares worst",
    "rows": "mean rows of a batch",
    "busy": "mean share of the devices' time",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. loads: empty means each workload's own. rtt_ns: between sidecar and Triton."""

    workloads: Sequence[str]
    contenders: Sequence[str]
    loads: Sequence[float] = ()
    seeds: int = 5
    length: int = 10_000
    rtt_ns: int = 0

    def traces(self) -> list[Trace]:
        return [
            Trace(name, load, seed, self.length)
            for name in self.workloads
            for load in (self.loads or (default_load(name),))
            for seed in range(1, self.seeds + 1)
        ]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run in figures. curve: quantiles of the time of all answers, as shares of the deadline.

    answered: of all arrivals. bars: of the first seed only.
    """

    workload: str
    load: float
    seed: int
    contender: str
    figures: Mapping[str, float]
    answered: float
    curve: Sequence[float]
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Row:
    """A contender at a load: means over the seeds, and half the width of their intervals."""

    workload: str
    load: float
    contender: str
    mean: Mapping[str, float]
    spread: Mapping[str, float | None]
    sample: Sample


def samples(plan: Plan, trace: Trace) -> list[Sample]:
    """Everybody on one trace."""
    tuning = tuning_for(plan.rtt_ns)
    window_ns = WINDOW_NS if trace.seed == 1 else (0, 0)
    return [
        _sample(run(trace, contender, tuning=tuning, window_ns=window_ns))
        for contender in plan.contenders
    ]


def _sample(done: Run) -> Sample:
    record, trace = done.record, done.trace
    figures = {
        "value": record.utility / max(1e-9, bound_of(trace)),
        "on_time": record.on_time_share,
        "goodput": record.outcomes[Outcome.SERVED] / (trace.duration_ns / S),
        "miss": record.miss_ratio,
        "refused": record.reject_ratio,
        "refusal_at": statistics.median(record.refusal) if record.refusal else 0.0,
        "worst": record.worst_share,
        "rows": record.rows_mean,
        "busy": done.busy,
    }
    return Sample(
        trace.name,
        trace.load,
        trace.seed,
        done.contender,
        figures,
        len(record.used) / max(1, record.total),
        _curve(sorted(record.used)),
        tuple(record.bars),
    )


def _curve(values: Sequence[float]) -> list[float]:
    if not values:
        return []
    last = len(values) - 1
    return [values[round(last * k / CURVE_POINTS)] for k in range(CURVE_POINTS + 1)]


def execute(
    plan: Plan, *, jobs: int = 1, tick: Callable[[Trace], None] = lambda _: None
) -> list[Row]:
    """Run the plan; `tick` hears of each trace that is done, in order."""
    traces = plan.traces()
    found: list[Sample] = []
    for trace, made in zip(traces, _all_samples(plan, traces, jobs), strict=True):
        found += made
        tick(trace)
    return rows(found)


def _all_samples(plan: Plan, traces: Sequence[Trace], jobs: int) -> Iterator[list[Sample]]:
    work = partial(samples, plan)
    if jobs == 1:
        yield from map(work, traces)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            yield from pool.map(work, traces)


def rows(found: Iterable[Sample]) -> list[Row]:
    """Means over the seeds, in the order of the samples."""

    def key(sample: Sample) -> tuple[str, float, str]:
        return (sample.workload, sample.load, sample.contender)

    order: dict[tuple[str, float, str], int] = {}
    listed = list(found)
    for sample in listed:
        order.setdefault(key(sample), len(order))
    listed.sort(key=lambda sample: (order[key(sample)], sample.seed))
    return [_row([*group]) for _, group in groupby(listed, key=key)]


def _row(group: Sequence[Sample]) -> Row:
    first = group[0]
    values = {name: [sample.figures[name] for sample in group] for name in FIGURES}
    return Row(
        first.workload,
        first.load,
        first.contender,
        {name: statistics.fmean(found) for name, found in values.items()},
        {name: interval(found) for name, found in values.items()},
        first,
    )


def interval(values: Sequence[float]) -> float | None:
    """Half the 95 % confidence interval of their mean; None for a single one."""
    if len(values) < 2:
        return None
    return 1.96 * statistics.stdev(values) / math.sqrt(len(values))

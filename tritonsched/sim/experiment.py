"""One run of the study: a rule or a simulated server on a workload, against the bound.

Rule: everybody gets the same trace, the same noise and the same knowledge: nominal profiles and
deadlines. What follows is a function of (workload, load, contender, seed, length) alone.

Contenders: every rule of `POLICIES`; `lite+fair`, `lookahead+fair`: with fairness among tenants,
which are the classes; `triton`, `triton+reject`: Triton's dynamic batcher, tuned per workload by a
sweep on a trace of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, product

from tritonsched.core.fairness import Fairness
from tritonsched.core.feedback import Feedback, Settings
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Request
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.sim.bound import Option, bound
from tritonsched.sim.engine import Simulation
from tritonsched.sim.papers import shepherd
from tritonsched.sim.record import Record
from tritonsched.sim.studies import STUDIES
from tritonsched.sim.triton import Batcher, TritonServer
from tritonsched.sim.workload import WORKLOADS, Workload
from tritonsched.sim.world import Faults, SimModel, World

S = 1_000_000_000
NOISE = Faults(jitter=0.03, overrun_rate=0.003)
"""Assumed: 3 % of spread; 0.3 % of batches take 1.5 to 3 times as long (scheduling study 1)."""
NAMED: Mapping[str, Callable[[float], Workload]] = {**WORKLOADS, "shepherd": shepherd}
SERVERS = ("triton", "triton+reject")
FAIR = "+fair"  # behind a rule that goes by worth
FAIRNESS = Fairness(target=0.8, strength=5.0)
TUNE_SEED = 100
TUNE_LENGTH = 2_000
DELAYS = (0.0, 0.05, 0.15, 0.3)  # of the deadline
SIZES = (0.35, 0.5, 0.75, 1.0, None)  # largest batch: exec <= that much of the deadline; None: any
SECONDS_MIN, SECONDS_MAX = 1.0, 30.0  # of a trace


def contenders() -> list[str]:
    """Names that `run` takes."""
    return [*sorted(POLICIES), *(f"{rule}{FAIR}" for rule in ("lite", "lookahead")), *SERVERS]


def workload_names() -> list[str]:
    """Names that `Trace` takes."""
    return [*STUDIES, *NAMED]


def default_load(name: str) -> float:
    return STUDIES[name].load if name in STUDIES else 1.0


@dataclass(frozen=True, slots=True)
class Trace:
    """A workload at a load, drawn with a seed. length: requests, about."""

    name: str
    load: float
    seed: int
    length: int = 10_000

    @property
    def workload(self) -> Workload:
        if self.name in STUDIES:
            return STUDIES[self.name].workload(self.load)
        return NAMED[self.name](self.load)

    @property
    def duration_ns(self) -> int:
        """As long as `length` requests take, but 1 to 30 s."""
        return _duration_ns(self)

    def requests(self) -> Iterator[Request]:
        return self.workload.requests(duration_ns=self.duration_ns, seed=self.seed)


@cache
def _duration_ns(trace: Trace) -> int:
    """A second is drawn to know; every contender of the trace asks."""
    count = sum(1 for _ in trace.workload.requests(duration_ns=S, seed=TUNE_SEED))
    seconds = min(SECONDS_MAX, max(SECONDS_MIN, trace.length / max(1, count)))
    return round(seconds * S)


# No round trip: nothing is gained by sending a batch ahead, so that each waits for the last. What
# overruns then takes only its own members along.
SERIAL = Tuning(rtt_ns=0, guard_ns=0, ahead=False)


def tuning_for(rtt_ns: int) -> Tuning:
    """The sidecar's numbers at that round trip."""
    return Tuning(rtt_ns=rtt_ns) if rtt_ns else SERIAL


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it. busy: mean share of the devices' time."""

    trace: Trace
    contender: str
    record: Record
    busy: float


@cache
def bound_of(trace: Trace) -> float:
    """The clairvoyant bound on the trace's utility; variants are open to it where there are any."""
    workload = trace.workload
    options = {
        name: [
            Option(model.accuracy / found[0].accuracy, model.rows_max, model.times())
            for model in found
        ]
        for name, found in workload.asked().items()
    }
    return bound(trace.requests(), options)


def run(
    trace: Trace,
    contender: str,
    *,
    tuning: Tuning | None = None,
    faults: Faults = NOISE,
    window_ns: tuple[int, int] = (0, 0),
    make: Callable[..., Scheduler] = Scheduler,
    feedback: Settings | None = None,
) -> Run:
    """Serve the trace.

    window_ns: (from, until), batches of which are kept for a chart. make: builds the
    scheduler, another one to time it for example. feedback: the default if None.
    """
    workload = trace.workload
    tuning = tuning or SERIAL
    record = Record(window_ns=window_ns)
    models = workload.fixed() if contender in SERVERS else workload.models
    world = World(models, seed=trace.seed, rtt_ns=tuning.rtt_ns, faults=faults)
    if contender in SERVERS:
        batchers = tuned(trace.name, trace.load, reject=contender == "triton+reject")
        server = TritonServer(world, batchers, observers=(record,))
        server.run(trace.requests())
        end_ns = server.now
    else:
        tuner = Feedback(feedback)
        rule = POLICIES[contender.removesuffix(FAIR)]()
        scheduler = make(rule, tuning=tuning, observers=(record, tuner))
        if contender.endswith(FAIR):
            scheduler.tenants.adopt({}, FAIRNESS)
        inform(scheduler, workload.models)
        simulation = Simulation(
            scheduler, world, keep_log=False, feedback=tuner, families=workload.families
        )
        simulation.run(trace.requests())
        end_ns = simulation.now
    busy = sum(world.busy_ns.values()) / len(world.busy_ns) / max(1, end_ns)
    return Run(trace, contender, record, busy)


def inform(scheduler: Scheduler, models: Sequence[SimModel]) -> None:
    """The nominal times, as a profiler would have measured them beforehand."""
    for model in models:
        for device in model.devices:
            times = model.exec_on(device)
            table = {rows: times(rows) for rows in range(1, model.rows_max + 1)}
            scheduler.set_profile(model.name, device, LatencyProfile(table))


@cache
def tuned(name: str, load: float, *, reject: bool) -> Mapping[str, Batcher]:
    """The best of 20 configurations of Triton's batcher, or of 60 with REJECT, by utility."""
    trace = Trace(name, load, TUNE_SEED, length=TUNE_LENGTH)
    requests = list(islice(trace.requests(), TUNE_LENGTH))
    found = [_configured(trace.workload, requests, *shape) for shape in _shapes(reject=reject)]
    different = [one for k, one in enumerate(found) if one not in found[:k]]
    return max(different, key=lambda batchers: _utility(trace, requests, batchers))


def _shapes(*, reject: bool) -> Iterator[tuple[float, float | None, str]]:
    yield from product(DELAYS, SIZES, ("one", "full", "half") if reject else ("",))


def _configured(
    workload: Workload, requests: Sequence[Request], delay: float, size: float | None, timeout: str
) -> Mapping[str, Batcher]:
    """Every model in proportion to its tightest deadline."""
    return {
        model.name: _batcher(
            model,
            min(
                (r.deadline_ns - r.arrival_ns for r in requests if r.model == model.name), default=S
            ),
            delay,
            size,
            timeout,
        )
        for model in workload.fixed()
    }


def _batcher(
    model: SimModel, slo_ns: int, delay: float, size: float | None, timeout: str
) -> Batcher:
    times = model.exec_ns
    rows = model.rows_max
    if size is not None:
        rows = max((b for b in range(1, rows + 1) if times(b) <= size * slo_ns), default=1)
    timeouts = {
        "": None,
        "one": slo_ns - times(1),
        "full": slo_ns - times(rows),
        "half": slo_ns // 2,
    }
    after = timeouts[timeout]
    return Batcher(rows, round(delay * slo_ns), None if after is None else max(1, after))


def _utility(trace: Trace, requests: Sequence[Request], batchers: Mapping[str, Batcher]) -> float:
    record = Record()
    world = World(trace.workload.fixed(), seed=TUNE_SEED, rtt_ns=0, faults=NOISE)
    TritonServer(world, batchers, observers=(record,)).run(requests)
    return record.utility

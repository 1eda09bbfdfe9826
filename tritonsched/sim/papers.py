"""The evaluation set-ups of the papers that the scheduler is measured against, as workloads.

Rule: what a paper states is taken as it stands, with its source; what it leaves open is a named
constant here. DeepRT: Yang et al., SEC 2021; Shepherd: Zhang et al., NSDI 2023; QoS-aware
scheduling of heterogeneous servers: Fang et al., CIKM 2017.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tritonsched.core.request import Request, SloClass, Utility
from tritonsched.sim.arrivals import bursts, constant, trace
from tritonsched.sim.tables import exec_ns, scaled
from tritonsched.sim.workload import Stream, Workload
from tritonsched.sim.world import ExecNs, SimModel, table

S = 1_000_000_000
MS = 1_000_000


def shepherd(load: float = 1.0) -> Workload:
    """The overload micro-benchmark: bursts of 1024 every 120 ms for ResNet-18, one request a ms for
    ResNeSt-269, deadlines of 250 ms, batches up to 128; `load` times as often.

    Deadline order serves whoever is due first and wastes the device on the slow model.
    """
    slo = 250 * MS
    models = (
        SimModel("resnet18", 128, exec_ns("resnet18-v100")),
        SimModel("resnest269", 128, exec_ns("resnest269-v100")),
    )
    streams = (
        Stream("resnet18", bursts(1024, round(120 * MS / load)), ((SloClass("bursts", slo), 1.0),)),
        Stream("resnest269", constant(1000.0 * load), ((SloClass("steady", slo), 1.0),)),
    )
    return Workload(models, streams)


DEEPRT_MS_AT_16 = {
    "resnet50": 25.0, "inceptionv3": 38.0, "resnet101": 42.0,
    "vgg16": 46.0, "vgg19": 56.0, "resnet152": 58.0,
}  # fmt: skip
"""Batches of 16 on an RTX 2080, read off the paper's chart; the curve is ResNet-50's, scaled."""
DEEPRT_ROWS_MAX = 32
DEEPRT_FRAMES = 300  # of a stream; the paper says "fixed"
DEEPRT_STREAMS = 25  # proposed a trace; the paper: 20 to 30
DEEPRT_CATEGORIES = 4  # models of a trace; the paper: "limited"
DEEPRT_GAP_S = 1.0  # mean time between proposals; the paper follows a trace of tweets


@dataclass(frozen=True, slots=True)
class Camera:
    """A stream as DeepRT is asked for it."""

    number: int
    model: str
    start_ns: int
    period_ns: int
    relative_ns: int
    frames: int

    def stream(self) -> Stream:
        times = [self.start_ns + frame * self.period_ns for frame in range(self.frames)]
        slo = SloClass(f"stream{self.number}", self.relative_ns)
        return Stream(self.model, trace(times), ((slo, 1.0),))


def deeprt_models() -> dict[str, ExecNs]:
    """Times on an RTX 2080 by model."""
    base = exec_ns("resnet50-rtx2080")
    return {
        name: scaled(base, ms / DEEPRT_MS_AT_16["resnet50"]) for name, ms in DEEPRT_MS_AT_16.items()
    }


def deeprt_proposals(mean_ms: float, dice: random.Random) -> list[Camera]:
    """A trace: periods and deadlines from Gamma(2, 5) scaled to their mean, models at random."""
    models = dice.sample(sorted(DEEPRT_MS_AT_16), DEEPRT_CATEGORIES)
    cameras: list[Camera] = []
    now = 0.0
    for number in range(DEEPRT_STREAMS):
        now += dice.expovariate(1.0 / DEEPRT_GAP_S)
        period, relative = (max(2.0, _gamma(mean_ms, dice)) for _ in range(2))
        cameras.append(
            Camera(
                number,
                dice.choice(models),
                round(now * S),
                round(period * MS),
                round(relative * MS),
                DEEPRT_FRAMES,
            )
        )
    return cameras


def _gamma(mean: float, dice: random.Random) -> float:
    return dice.gammavariate(2.0, 5.0) * mean / 10.0


def deeprt_workload(cameras: Sequence[Camera]) -> Workload:
    """The streams that were admitted, on one device."""
    times = deeprt_models()
    named = sorted({camera.model for camera in cameras})
    models = [SimModel(name, DEEPRT_ROWS_MAX, times[name]) for name in named]
    return Workload(models, [camera.stream() for camera in cameras])


CIKM_QUERIES_S = {
    ("g2", "tiny"): (25.6, 35.7, 51.9, 66.1, 73.7, 84.7, 91.2),
    ("g2", "full"): (9.4, 9.4, 12.3, 14.7, 16.0, 16.8),
    ("p2", "tiny"): (23.8, 35.7, 63.5, 90.9, 109.6, 131.1, 141.9),
    ("p2", "full"): (14.5, 18.9, 24.2, 28.4, 31.5, 33.9, 34.6),
}
"""Queries a second in batches of 1, 2, 4, …: YOLO on AWS g2.2xlarge and p2.xlarge (CIKM 2017)."""
CIKM_WORTH = {"full": 1.0, "tiny": 0.5}  # kappa
CIKM_SOFT_NS, CIKM_HARD_NS = 1 * S, 2 * S  # after the query is made
CIKM_UPSTREAM_S, CIKM_PARETO = 0.1, 2.5
"""On the way to the server: 0.1 s times Pareto(2.5), the published replica's; the paper names the
family of the distribution only."""


def cikm_exec_ns(gpu: str, model: str) -> ExecNs:
    """Batch delay D = B / throughput, linear between the profiled sizes."""
    rates = CIKM_QUERIES_S[gpu, model]
    return table({1 << k: round((1 << k) / rate * S) for k, rate in enumerate(rates)})


def cikm_queries(
    rate: float, *, duration_ns: int, seed: int, step_ns: int = 1
) -> Iterator[tuple[int, Request | None]]:
    """When each query reaches the server, in order, and the request; None: its hard deadline has
    passed by then. Poisson at `rate` a second; deadlines run from when it was made. Those of a step
    come together at its start, as in the paper's simulator (10 ms).
    """
    dice = random.Random(f"{seed}/cikm")  # noqa: S311  # a simulator's dice
    made: list[tuple[int, int]] = []
    now = 0.0
    while (now := now + dice.expovariate(rate)) * S < duration_ns:
        upstream_s = CIKM_UPSTREAM_S * dice.paretovariate(CIKM_PARETO)
        made_ns, arrival_ns = round(now * S), round((now + upstream_s) * S)
        early_ns = arrival_ns % step_ns
        made.append((arrival_ns - early_ns, made_ns - early_ns))
    for number, (arrival_ns, made_ns) in enumerate(sorted(made), 1):
        deadline_ns = made_ns + CIKM_HARD_NS
        if arrival_ns >= deadline_ns:
            yield arrival_ns, None
            continue
        yield (
            arrival_ns,
            Request(
                number,
                "yolo",
                "query",
                0,
                1,
                arrival_ns,
                deadline_ns,
                utility=_falling(made_ns, arrival_ns, deadline_ns),
            ),
        )


def _falling(made_ns: int, arrival_ns: int, deadline_ns: int) -> Utility:
    """Full until the soft deadline, 0 at the hard one; of what is left when the query arrives."""
    soft_ns = made_ns + CIKM_SOFT_NS
    if soft_ns > arrival_ns:
        return Utility.linear((soft_ns - arrival_ns) / (deadline_ns - arrival_ns))
    left = (deadline_ns - arrival_ns) / (CIKM_HARD_NS - CIKM_SOFT_NS)
    return Utility(((0.0, left), (1.0, 0.0)))

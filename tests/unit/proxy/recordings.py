"""A simulated run, recorded as a live one would be: tests of recorder and replay begin with it."""

from collections.abc import Sequence
from pathlib import Path

from tritonsched.config.schema import PolicyFile
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Request, SloClass
from tritonsched.core.reservation import Reservation
from tritonsched.core.scheduler import Scheduler
from tritonsched.proxy.recorder import Recorder
from tritonsched.sim.arrivals import poisson
from tritonsched.sim.engine import Simulation
from tritonsched.sim.experiment import inform
from tritonsched.sim.workload import Stream, Workload
from tritonsched.sim.world import Faults, SimModel, World, affine

MS = 1_000_000
S = 1_000_000_000
POLICY = PolicyFile.model_validate(
    {
        "classes": {"gold": {"deadline_ms": 40.0, "weight": 4.0}, "free": {"deadline_ms": 90.0}},
        "default_class": "free",
    }
)
MODELS = (
    SimModel("cam", 8, affine(4 * MS, 2 * MS)),
    SimModel("text", 4, affine(6 * MS, 1 * MS)),
)


def arrivals(rate: float = 240.0, *, seed: int = 1, duration_ns: int = 4 * S) -> list[Request]:
    """Two models, two classes, some requests of several rows and some that go alone."""
    slos = POLICY.slo_classes()
    mix: list[tuple[SloClass, float]] = [(slos["gold"], 1.0), (slos["free"], 2.0)]
    streams = [
        Stream("cam", poisson(rate), mix, rows=((1, 3.0), (3, 1.0)), alone_share=0.05),
        Stream("text", poisson(rate / 3), mix),
    ]
    return list(Workload(MODELS, streams).requests(duration_ns=duration_ns, seed=seed))


def record(
    path: Path,
    requests: Sequence[Request],
    *,
    faults: Faults | None = None,
    file_bytes_max: int = 1 << 30,
    cancel: Sequence[tuple[int, int]] = (),
    streams: Sequence[Reservation] = (),
    policy: PolicyFile = POLICY,
    models: Sequence[SimModel] = MODELS,
) -> tuple[Ledger, Recorder]:
    """Serve the requests and write FILE. cancel: (request, time at which its client leaves).
    streams: ask for a guarantee at the very begin.
    """
    ledger, said = Ledger(), list[str]()
    recorder = Recorder(path, file_bytes_max=file_bytes_max, policy=policy, told=said.append)
    rule = POLICIES[policy.scheduler.policy]()
    scheduler = Scheduler(rule, tuning=policy.tuning(), observers=(ledger, recorder))
    recorder.watch(scheduler)
    inform(scheduler, models)
    recorder.start()
    world = World(models, seed=1, faults=faults)
    simulation = Simulation(scheduler, world, keep_log=False, families=policy.families())
    for number, at_ns in cancel:
        simulation.cancel(number, at_ns=at_ns)
    for wanted in streams:
        simulation.reserve(wanted, at_ns=0)
        recorder.on_reserve(wanted, 0)
    simulation.run(requests)
    for said_of in simulation.answers:
        recorder.on_reserved(said_of, simulation.now)
    recorder.close()
    assert said == []
    return ledger, recorder

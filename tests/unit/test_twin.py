"""The twin test: live driver and simulator take identical decisions.

The same scheduler, workload and simulated Triton, once under the live driver on a virtual-time
asyncio loop and once under the simulator, with cancellations, failures, overruns, throttling, a
Triton that goes away and numbers that are retuned. A failure names its seed and the first decision
that differs; the same seed always gives the same run.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import pytest

from tests.helpers import MS, S
from tests.unit.proxy.calls import call, tensor
from tests.virtual_loop import VirtualLoop, run_virtual
from tritonsched import errors
from tritonsched.backend.batch_call import BatchCall, BatchDone, BatchReply
from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.backend.scripted import canned, identity
from tritonsched.core.batch import Batch, Decision, Dispatch, summary
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome, Request, SloClass
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant
from tritonsched.proxy.driver import Driver
from tritonsched.proxy.job import Job
from tritonsched.proxy.timer import LoopTimer
from tritonsched.sim.arrivals import constant, gamma, periodic, poisson
from tritonsched.sim.engine import Line, Simulation
from tritonsched.sim.workload import Stream, Workload
from tritonsched.sim.world import Fate, Faults, SimModel, World, affine
from tritonsched.tensors import GrpcReply, InferCall, RawReply

SEEDS = range(60)
DURATION_NS = 250 * MS
CLASSES = (
    (SloClass("tight", 20 * MS, weight=2.0), 1.0),
    (SloClass("loose", 80 * MS), 2.0),
    (SloClass("patient"), 1.0),
)


@dataclass(frozen=True)
class Scenario:
    """Everything that happens in one run, fixed beforehand."""

    seed: int
    policy: str
    tuning: Tuning
    models: Sequence[SimModel]
    requests: Sequence[Request]
    cancels: Sequence[tuple[int, int]]  # (time, request id), in order of time
    retunes: Sequence[tuple[int, Tuning]]
    faults: Faults

    def scheduler(self, ledger: Ledger) -> Scheduler:
        return Scheduler(POLICIES[self.policy](), tuning=self.tuning, observers=(ledger,))

    def world(self) -> World:
        return World(self.models, seed=self.seed, rtt_ns=self.tuning.rtt_ns, faults=self.faults)


def scenario(seed: int) -> Scenario:
    dice = random.Random(seed)
    tuning = Tuning(
        rtt_ns=dice.randint(10_000, 2 * MS),
        guard_ns=dice.choice([0, 300_000]),
        reply_ns=dice.choice([0, 500_000]),
        window_ns=dice.choice([0, 0, 3 * MS]),
        queue_requests_max=dice.choice([10, 4096]),
    )
    devices = [f"gpu{number}" for number in range(dice.randint(1, 3))]
    servers = {device: dice.choice(["left", "right"]) for device in devices}
    models = [_model(f"m{number}", devices, dice) for number in range(dice.randint(1, 3))]
    if dice.random() < 0.5:  # two servers
        models = [replace(m, servers=tuple(servers[d] for d in m.devices)) for m in models]
    streams = [_stream(model, dice) for model in models]
    workload = Workload(models, streams)
    requests = list(workload.requests(duration_ns=DURATION_NS, seed=seed))
    leavers = dice.sample(requests, len(requests) // 8)
    gone_ns = dice.randrange(DURATION_NS)
    return Scenario(
        seed=seed,
        policy=dice.choice(["lite", "lite", "edf", "fcfs"]),
        tuning=tuning,
        models=models,
        requests=requests,
        cancels=sorted((r.arrival_ns + dice.randint(1, 60 * MS), r.id) for r in leavers),
        retunes=[(dice.randrange(DURATION_NS), Tuning(rtt_ns=tuning.rtt_ns, reply_ns=MS))],
        faults=Faults(
            jitter=0.05,
            overrun_rate=0.05,
            failure_rate=dice.choice([0.0, 0.1, 0.3]),
            alone_failure_rate=dice.choice([0.0, 0.2]),
            throttles=((dice.randrange(DURATION_NS), dice.uniform(0.5, 3.0)),),
            away=dice.choice([(), ((gone_ns, gone_ns + 50 * MS),)]),
            gone=dice.choice([{}, {"left": [(k * MS, (k + 7) * MS) for k in range(5, 250, 40)]}]),
            slow_first=dice.choice([1.0, 10.0]),
        ),
    )


def _model(name: str, devices: Sequence[str], dice: random.Random) -> SimModel:
    return SimModel(
        name,
        rows_max=dice.choice([4, 8, 32]),
        exec_ns=affine(dice.randint(MS, 6 * MS), dice.randint(100_000, MS)),
        devices=tuple(sorted(dice.sample(devices, dice.randint(1, len(devices))))),
    )


def _stream(model: SimModel, dice: random.Random) -> Stream:
    rate = dice.uniform(0.2, 2.0) * model.rows_max * S / model.exec_ns(model.rows_max) / 2
    arrivals = dice.choice(
        [poisson(rate), gamma(rate, cv=2.0), constant(rate), periodic(round(S / rate))]
    )
    return Stream(
        model.name,
        arrivals,
        CLASSES,
        rows=((1, 3.0), (2, 1.0), (4, 0.5)),
        signatures=((0, 3.0), (1, 1.0)),
        alone_share=dice.choice([0.0, 0.1]),
    )


# -- the simulated twin -----------------------------------------------------------------------


def run_simulated(given: Scenario) -> tuple[list[Line], Ledger]:
    ledger = Ledger()
    simulation = Simulation(given.scheduler(ledger), given.world())
    for at_ns, request_id in given.cancels:
        simulation.cancel(request_id, at_ns=at_ns)
    for at_ns, tuning in given.retunes:
        simulation.retune(tuning, at_ns=at_ns)
    return simulation.run(given.requests), ledger


# -- the live twin ----------------------------------------------------------------------------


class WorldBackend:
    """A Backend that asks the simulated Triton. Batches are known from the decision log."""

    def __init__(self, world: World, loop: VirtualLoop) -> None:
        self._world = world
        self._loop = loop
        self._batches: dict[int, Batch] = {}
        self._lone: dict[str, Batch] = {}
        self._running: set[asyncio.Task[None]] = set()

    def heed(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Dispatch):
                self._batches[decision.batch.id] = decision.batch
                self._lone[str(decision.batch.requests[0].id)] = decision.batch

    def send(self, call: BatchCall, done: BatchDone) -> None:
        task = asyncio.ensure_future(self._told(call, done))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _told(self, call: BatchCall, done: BatchDone) -> None:
        outcome: BatchReply | errors.TritonschedError
        try:
            if await self._fate(self._batches[call.id]) is Fate.FAILED:
                outcome = errors.BackendError("as the world has it")
            else:
                outcome = BatchReply(call.model, "1", identity(call), lambda: None)
        except errors.TritonUnavailable as error:
            outcome = error
        done(outcome)

    async def forward(self, call: InferCall) -> RawReply:
        fate = await self._fate(self._lone[call.id])
        return GrpcReply("INTERNAL", "", b"") if fate is Fate.FAILED else canned(call)

    async def model_info(self, model: str, version: str) -> None:
        return None

    async def ready(self) -> bool:
        return True

    async def close(self) -> None: ...

    async def _fate(self, batch: Batch) -> Fate:
        answer = self._world.send(batch, self._loop.now_ns())
        await self._loop.until(answer.at_ns)
        if answer.fate is Fate.LOST:
            raise errors.TritonUnavailable("as the world has it")
        return answer.fate


class Live:
    """The live driver in the scenario."""

    def __init__(self, given: Scenario, loop: VirtualLoop) -> None:
        self._given = given
        self._loop = loop
        self.ledger = Ledger()
        self.log: list[Line] = []
        self._backend = WorldBackend(given.world(), loop)
        self._driver = Driver(
            given.scheduler(self.ledger),
            self._backend,
            clock=loop.now_ns,
            make_timer=lambda fired: LoopTimer(loop, fired),
            on_decisions=self._decided,
        )
        for model in given.models:
            self._driver.set_variant(
                Variant(model.name, model.rows_max, model.devices, servers=model.servers)
            )
        self._calls: dict[int, asyncio.Task[str]] = {}

    def _decided(self, now: int, decisions: Sequence[Decision]) -> None:
        self.log += [(now, summary(decision)) for decision in decisions]
        self._backend.heed(decisions)

    async def run(self) -> list[str]:
        """Play the scenario; returns how each call ended."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._cancel())
            group.create_task(self._retune())
            for server in dict.fromkeys(s for m in self._given.models for s in m.servers or ("",)):
                for gone_ns, back_ns in self._given.faults.away:
                    group.create_task(self._tell_server(server, gone_ns, back_ns))
                for gone_ns, back_ns in self._given.faults.gone.get(server, ()):
                    group.create_task(self._tell_server(server, gone_ns, back_ns))
            for request in self._given.requests:
                await self._loop.until(request.arrival_ns)
                self._calls[request.id] = group.create_task(self._call(request))
        await self._driver.drained()
        self._driver.close()
        return [task.result() for task in self._calls.values()]

    async def _call(self, request: Request) -> str:
        shape = TensorInfo("INPUT", "UINT8", (2,)), TensorInfo("OUTPUT", "UINT8", (2,))
        info = ModelInfo(
            request.model, "", 32, {"INPUT": shape[0]}, {"OUTPUT": shape[1]}, devices=("gpu0",)
        )
        made = call(tensor(request.rows), model=request.model, id=str(request.id))
        job = Job(made, info, request, lone="lone" if request.alone else "")
        try:
            answer = await self._driver.infer(job)
        except errors.TritonschedError as error:
            return error.reason
        except asyncio.CancelledError:
            return "cancelled"
        return answer.code if isinstance(answer, GrpcReply) else "OK"

    async def _cancel(self) -> None:
        for at_ns, request_id in self._given.cancels:
            await self._loop.until(at_ns)
            self._calls[request_id].cancel()

    async def _retune(self) -> None:
        for at_ns, tuning in self._given.retunes:
            await self._loop.until(at_ns)
            self._driver.retune(tuning)

    async def _tell_server(self, server: str, gone_ns: int, back_ns: int) -> None:
        await self._loop.until(gone_ns)
        self._driver.set_server(ServerState.AWAY, server)
        await self._loop.until(back_ns)
        self._driver.set_server(ServerState.READY, server)


def run_live(given: Scenario) -> tuple[list[Line], Ledger, list[str]]:
    async def main(loop: VirtualLoop) -> tuple[list[Line], Ledger, list[str]]:
        live = Live(given, loop)
        ends = await live.run()
        return live.log, live.ledger, ends

    return run_virtual(main)


@pytest.mark.parametrize("seed", SEEDS)
def test_live_and_simulated_driver_take_identical_decisions(seed: int) -> None:
    _compare(scenario(seed))


@pytest.mark.parametrize("policy", POLICIES)
def test_they_do_so_under_every_rule(policy: str) -> None:
    _compare(replace(scenario(5), policy=policy))


def _compare(given: Scenario) -> None:
    simulated, sim_ledger = run_simulated(given)
    live, live_ledger, ends = run_live(given)
    for number, (left, right) in enumerate(zip_longest(simulated, live)):
        assert left == right, f"seed {given.seed}: decision {number} differs, simulated first"
    assert live_ledger.outcomes == sim_ledger.outcomes
    assert live_ledger.utility == sim_ledger.utility
    # Each request left once, and each call was answered.
    assert sum(live_ledger.outcomes.values()) == len(given.requests) == len(ends)
    assert ends.count("OK") == sum(
        live_ledger.total(kind) for kind in (Outcome.SERVED, Outcome.LATE)
    )


def test_the_scenarios_are_not_all_fair_weather() -> None:
    """What the twin test is about does happen in its seeds."""
    total: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
    again = 0
    for seed in SEEDS[::4]:
        log, ledger = run_simulated(scenario(seed))
        for outcome in Outcome:
            total[outcome] += ledger.total(outcome)
        members = [i for _, line in log if line[0] == "dispatch" for i in _ids(line[4])]
        again += len(members) - len(set(members))
    for outcome in (Outcome.SERVED, Outcome.LATE, Outcome.REJECTED, Outcome.FAILED):
        assert total[outcome] > 20, outcome
    assert total[Outcome.CANCELLED] > 20
    assert again > 20


def _ids(members: object) -> tuple[int, ...]:
    assert isinstance(members, tuple)
    return members

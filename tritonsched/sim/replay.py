"""What would have come of the recorded traffic under another policy. Rule: the very Scheduler that
runs live decides; what cannot be known from a recording is said, not guessed.

Arrivals, clients that left, Triton's absences and what feedback had set are as recorded. Execution
times are: by rows the median of what was measured, times the noise of a batch of that model which
ran about then, drawn with a seed; so throttling in the recording throttles the replay. Each policy
begins with those medians as its profile, as a sidecar does that has run for a while.
A deadline as long as its class allowed is taken for the class' own, a shorter one for the client's;
a request in its model's default class is taken for one that named none; tenants likewise.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from tritonsched.config.recorded import Recording
from tritonsched.config.schema import PolicyFile
from tritonsched.core.batch import Batch, Grant
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import NEVER_NS, Outcome, Request, Tenant
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState
from tritonsched.sim.engine import Simulation
from tritonsched.sim.experiment import inform
from tritonsched.sim.world import NS_MIN, SimModel, World, table

S = 1_000_000_000
SLICES = 40  # of the recorded time, in a chart
NEIGHBOURS = 16  # batches that ran about then, of which one lends its noise
SAMPLES_MIN = 3  # of a size, else it says nothing where others say more
UNKNOWN_CLASS = "unknown-class"
UNKNOWN_MODEL = "unknown-model"  # no variant of it was measured, or Triton has none of that name
RECORDED, OLD = "recorded", "old"


class Account(Ledger):
    """A Ledger that also knows how each request ended, and when those arrived that were in time."""

    def __init__(self, duration_ns: int) -> None:
        super().__init__()
        self.ends: dict[int, Outcome] = {}
        self.in_time = [0] * SLICES
        self.not_in_time = [0] * SLICES
        self._slice_ns = max(1, -(-duration_ns // SLICES))

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        super().on_outcomes(requests, outcome, reason, now)
        for request in requests:
            self.ends[request.id] = outcome
            counts = self.in_time if outcome is Outcome.SERVED else self.not_in_time
            counts[min(SLICES - 1, request.arrival_ns // self._slice_ns)] += 1


@dataclass(frozen=True, slots=True)
class Run:
    """What came of the arrivals. busy: mean share of the devices' time; None as recorded.
    granted: streams that were given a guarantee.
    """

    name: str
    rule: str
    account: Account
    duration_ns: int
    busy: float | None = None
    granted: int = 0


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well the replay of the old policy tells what really happened.

    same: share of requests that end the same way. on_time: recorded and replayed, of those whose
    end is in the recording.
    """

    requests: int
    same: float
    on_time: tuple[float, float]

    @property
    def off(self) -> float:
        return abs(self.on_time[0] - self.on_time[1])


class Traffic:
    """The part of a recording that can be replayed. left_out: requests of models of which nothing
    was measured, by model.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.duration_ns = recording.duration_ns
        self.times = _times(recording)
        self.models = [
            SimModel(
                model,
                variant.rows_max,
                table(_medians(self.times[model, measured[0]])),
                devices=tuple(measured),
                on_device={d: table(_medians(self.times[model, d])) for d in measured},
                accuracy=variant.accuracy,
            )
            for model, variant in recording.models.items()
            if (measured := [d for d in variant.devices if (model, d) in self.times])
        ]
        known = self.served(recording.policy)
        requests = recording.arrivals.values()
        self.requests = [request for request in requests if request.model in known]
        self.left_out = Counter(r.model for r in requests if r.model not in known)

    def families(self, policy: PolicyFile) -> dict[str, tuple[str, ...]]:
        """Models with variants under the policy, with those that were measured."""
        measured = {model.name for model in self.models}
        kept = {
            family: tuple(name for name in variants if name in measured)
            for family, variants in policy.families().items()
        }
        return {family: variants for family, variants in kept.items() if variants}

    def served(self, policy: PolicyFile) -> set[str]:
        """What may be asked for under the policy."""
        return {model.name for model in self.models} | self.families(policy).keys()


Times = Mapping[tuple[str, str], Mapping[int, Sequence[int]]]
"""Measured ns by (model, device) and rows."""


def _times(recording: Recording) -> Times:
    found: dict[tuple[str, str], dict[int, list[int]]] = {}
    for batch in recording.batches:
        of_pair = found.setdefault((batch.model, batch.device), {})
        of_pair.setdefault(batch.rows, []).append(batch.exec_ns)
    return found


def _medians(by_rows: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """By rows; sizes that ran once or twice count only if no other did more often."""
    often = {rows: found for rows, found in by_rows.items() if len(found) >= SAMPLES_MIN}
    medians = {rows: int(median(found)) for rows, found in (often or by_rows).items()}
    return {rows: max(NS_MIN, ns) for rows, ns in medians.items()}


class RecordedWorld(World):
    """A Triton whose batches take what they took when it was recorded."""

    def __init__(self, traffic: Traffic, *, seed: int, rtt_ns: int) -> None:
        super().__init__(traffic.models, seed=seed, rtt_ns=rtt_ns)
        noise: defaultdict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        for batch in traffic.recording.batches:
            model = self.models.get(batch.model)
            if model is not None and batch.device in model.devices:
                ratio = batch.exec_ns / model.exec_on(batch.device)(batch.rows)
                noise[batch.model, batch.device].append((batch.at_ns, ratio))
        self._noise = noise

    def exec_ns(self, batch: Batch, start_ns: int) -> int:
        noise = self._noise[batch.model, batch.device]
        at = bisect_left(noise, (start_ns, 0.0))
        first = max(0, min(at - NEIGHBOURS // 2, len(noise) - NEIGHBOURS))
        near = noise[first : first + NEIGHBOURS]
        _, ratio = near[int(self._chances("time", batch)[0] * len(near))]
        return max(NS_MIN, round(self._nominal_ns(batch) * ratio))


def recorded(traffic: Traffic) -> Run:
    """What really happened, counted by the same ledger."""
    recording = traffic.recording
    account = Account(traffic.duration_ns)
    for request in traffic.requests:
        account.on_submit(request, request.arrival_ns)
        left = recording.left.get(request.id)
        if left is not None:
            account.on_outcomes((request,), left.outcome, left.reason, left.at_ns)
    rule, granted = recording.policy.scheduler.policy, len(recording.granted)
    return Run(RECORDED, rule, account, traffic.duration_ns, granted=granted)


def replayed(traffic: Traffic, name: str, policy: PolicyFile, *, seed: int) -> Run:
    """The recorded traffic under a policy, to its end."""
    recording = traffic.recording
    account = Account(traffic.duration_ns)
    tunings = recording.tunings or [(0, Tuning())]
    rtt_ns = int(median(tuning.rtt_ns for _, tuning in tunings))
    world = RecordedWorld(traffic, seed=seed, rtt_ns=rtt_ns)
    rule = POLICIES[policy.scheduler.policy]()
    first = _tuned(tunings[0][1], policy, recording.policy)
    scheduler = Scheduler(rule, tuning=first, observers=(account,))
    scheduler.tenants.adopt(policy.tenant_rules(), policy.fairness_rule())
    inform(scheduler, traffic.models)
    families = traffic.families(policy)
    simulation = Simulation(scheduler, world, keep_log=False, families=families)
    for at_ns, tuning in tunings:
        simulation.retune(_tuned(tuning, policy, recording.policy), at_ns=at_ns)
    _tell(simulation, recording)
    requests = list(_under(traffic, policy, account))
    for request in requests:
        left = recording.left.get(request.id)
        if left is not None and left.outcome is Outcome.CANCELLED:
            simulation.cancel(request.id, at_ns=left.at_ns)
    simulation.run(requests)
    busy = sum(world.busy_ns.values()) / len(world.busy_ns) / max(1, simulation.now)
    granted = sum(isinstance(answer, Grant) for answer in simulation.answers)
    return Run(name, policy.scheduler.policy, account, traffic.duration_ns, busy, granted)


def _tell(simulation: Simulation, recording: Recording) -> None:
    """What happened beside the requests: Triton's absences, streams that asked and ended."""
    for at_ns, state in recording.server:
        if state is not ServerState.DRAINING:
            simulation.tell_server(state, at_ns=at_ns)
    for at_ns, wanted in recording.reserved.values():
        if wanted.model in simulation.world.models:
            simulation.reserve(wanted, at_ns=at_ns)
    for at_ns, number in recording.released:
        simulation.release(number, at_ns=at_ns)


def _tuned(tuning: Tuning, policy: PolicyFile, old: PolicyFile) -> Tuning:
    """What feedback had set then, with what another policy file says otherwise."""
    if policy.tuning() == old.tuning():
        return tuning
    given = policy.tuning()
    return replace(
        tuning,
        window_ns=given.window_ns,
        rows_cap=given.rows_cap,
        queue_requests_max=given.queue_requests_max,
    )


def _under(traffic: Traffic, policy: PolicyFile, account: Account) -> Iterator[Request]:
    """The arrivals as this policy would have taken them in."""
    recording = traffic.recording
    old, classes, old_classes = (
        recording.policy,
        policy.slo_classes(),
        recording.policy.slo_classes(),
    )
    served = traffic.served(policy)
    for request in traffic.requests:
        if policy == old:
            slo = old_classes.get(request.slo)
            yield replace(request, utility=slo.utility) if slo and slo.utility else request
            continue
        if request.model not in served:
            account.on_submit(request, request.arrival_ns)
            account.on_outcomes((request,), Outcome.REJECTED, UNKNOWN_MODEL, request.arrival_ns)
            continue
        named = request.slo != old.class_of_model(request.model)
        slo = classes.get(request.slo if named else policy.class_of_model(request.model))
        if slo is None:
            account.on_submit(request, request.arrival_ns)
            account.on_outcomes((request,), Outcome.REJECTED, UNKNOWN_CLASS, request.arrival_ns)
            continue
        received_ns = recording.received_ns[request.id]
        wanted_ns = request.deadline_ns - received_ns
        before = old_classes.get(request.slo)
        allowed_ns = before.relative_deadline_ns if before else NEVER_NS
        relative_ns = slo.relative_deadline_ns
        if request.reservation:  # what was reserved holds under any policy
            relative_ns = wanted_ns
        elif request.has_deadline and wanted_ns < allowed_ns:
            relative_ns = min(relative_ns, wanted_ns)
        deadline_ns = NEVER_NS if relative_ns >= NEVER_NS else received_ns + relative_ns
        tenant = _tenant_of(request, policy, old)
        yield replace(
            request,
            slo=slo.name,
            weight=slo.weight * tenant.weight,
            deadline_ns=deadline_ns,
            tenant=tenant.name,
            utility=slo.utility,
        )


def _tenant_of(request: Request, policy: PolicyFile, old: PolicyFile) -> Tenant:
    """Who asks under the new policy. With whom it merges stays as it was recorded."""
    rules = policy.tenant_rules()
    named = request.tenant if request.tenant != old.default_tenant else policy.default_tenant
    return rules.get(named, rules[policy.default_tenant])


def agreement(real: Run, replay: Run) -> Agreement:
    """Of the replay of the old policy with what happened."""
    ends = real.account.ends
    same = sum(replay.account.ends.get(number) is end for number, end in ends.items())
    count = max(1, len(ends))
    on_time = [
        sum(run.account.ends.get(number) is Outcome.SERVED for number in ends) / count
        for run in (real, replay)
    ]
    return Agreement(len(ends), same / count, (on_time[0], on_time[1]))

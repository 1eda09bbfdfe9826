"""What a simulation came to: goodput, outcomes by class, misses, batches, utilisation.

Rule: every figure of requests comes from the core's Ledger, the very counts that run live; nothing
is defined a second time here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tritonsched.core.ledger import Ledger
from tritonsched.core.policy import Policy
from tritonsched.core.request import Outcome
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.sim.engine import Simulation
from tritonsched.sim.workload import Workload
from tritonsched.sim.world import Faults, World

S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Report:
    """One run.

    duration_ns: of the arrivals. goodput: served in time, a second. miss_ratio: late or expired of
    all that were not refused. outcomes: counts by class and outcome. utilisation: share of the run
    that each device was busy.
    """

    policy: str
    duration_ns: int
    submitted: int
    goodput: float
    utility: float
    miss_ratio: float
    rows_mean: float
    utilisation: Mapping[str, float]
    outcomes: Mapping[str, Mapping[str, int]]

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {
            "policy": self.policy,
            "duration_s": self.duration_ns / S,
            "submitted": self.submitted,
            "goodput_per_s": self.goodput,
            "utility_per_s": self.utility,
            "miss_ratio": self.miss_ratio,
            "rows_mean": self.rows_mean,
            "utilisation": dict(self.utilisation),
            "outcomes": {name: dict(counts) for name, counts in self.outcomes.items()},
        }

    def as_text(self) -> str:
        """A plain table: a line a class, and a line for the run."""
        kinds = [outcome.value for outcome in Outcome]
        lines = ["  ".join([f"{'class':<12}", *(f"{kind:>9}" for kind in kinds)])]
        for name, counts in self.outcomes.items():
            lines.append("  ".join([f"{name:<12}", *(f"{counts[kind]:>9}" for kind in kinds)]))
        busy = ", ".join(f"{name} {share:.0%}" for name, share in self.utilisation.items())
        lines.append(
            f"{self.policy}: {self.goodput:.1f}/s in time, {self.miss_ratio:.2%} of the admitted "
            f"missed, {self.rows_mean:.1f} rows a batch, busy: {busy}"
        )
        return "\n".join(lines)


def report(policy: str, ledger: Ledger, world: World, *, duration_ns: int, end_ns: int) -> Report:
    """Read the ledger and the world after a run whose last event was at `end_ns`."""
    seconds = duration_ns / S
    outcomes = {
        name: MappingProxyType(
            {outcome.value: ledger.outcomes[name, outcome] for outcome in Outcome}
        )
        for name in sorted(ledger.submitted)
    }
    elapsed_ns = max(1, end_ns)
    return Report(
        policy=policy,
        duration_ns=duration_ns,
        submitted=sum(ledger.submitted.values()),
        goodput=ledger.total(Outcome.SERVED) / seconds,
        utility=sum(ledger.utility.values()) / seconds,
        miss_ratio=ledger.miss_ratio,
        rows_mean=ledger.rows_mean,
        utilisation=MappingProxyType(
            {name: busy_ns / elapsed_ns for name, busy_ns in world.busy_ns.items()}
        ),
        outcomes=MappingProxyType(outcomes),
    )


def simulate(
    policy: Policy,
    workload: Workload,
    *,
    duration_ns: int,
    seed: int,
    tuning: Tuning | None = None,
    faults: Faults | None = None,
) -> Report:
    """Run a workload to its end under a policy, from an empty profile, and report."""
    tuning = tuning or Tuning()
    ledger = Ledger()
    world = World(workload.models, seed=seed, rtt_ns=tuning.rtt_ns, faults=faults)
    scheduler = Scheduler(policy, tuning=tuning, observers=(ledger,))
    simulation = Simulation(scheduler, world, keep_log=False)
    simulation.run(workload.requests(duration_ns=duration_ns, seed=seed))
    return report(policy.name, ledger, world, duration_ns=duration_ns, end_ns=simulation.now)

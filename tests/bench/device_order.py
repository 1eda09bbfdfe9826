"""Whether it matters in which order devices of unequal speed were announced, in the simulator.

    python -m tests.bench.device_order

Value as a share of the clairvoyant bound and misses among admitted, mean over seeds, with the
devices announced fastest first, slowest first, and as the workload names them. 2 minutes.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import fmean

from tritonsched.core.scheduler import Scheduler
from tritonsched.core.variant import Variant
from tritonsched.sim.experiment import Run, Trace, bound_of, default_load, run

ROWS = 4  # of the batches by which devices are ranked


def ordered(devices: Sequence[str]) -> Callable[..., Scheduler]:
    """A scheduler that heard of the devices in this order."""

    def make(*given: object, **named: object) -> Scheduler:
        scheduler = Scheduler(*given, **named)  # type: ignore[arg-type]  # passed on
        scheduler.set_variant(Variant("none", 1, tuple(devices)), 0)
        scheduler.drop_model("none", 0)
        return scheduler

    return make


def orders(trace: Trace) -> dict[str, list[str]]:
    """The devices of the trace's first model, in three orders."""
    model = trace.workload.models[0]
    ranked = sorted(model.devices, key=lambda device: model.exec_on(device)(ROWS))
    return {"fastest": ranked, "slowest": ranked[::-1], "as named": list(model.devices)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="W8,W13")
    parser.add_argument("--rules", default="lite,lookahead")
    parser.add_argument("--loads", default="0.5,0", help="0: the workload's own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6000)
    options = parser.parse_args()
    names = ("fastest", "slowest", "as named")
    sys.stdout.write(f"workload | load | rule | {' | '.join(names)}: value, missed\n")
    for name in options.workloads.split(","):
        for load in map(float, options.loads.split(",")):
            at = load or default_load(name)
            traces = [Trace(name, at, seed, options.requests) for seed in range(options.seeds)]
            for rule in options.rules.split(","):
                cells = []
                for order in names:
                    done = [run(t, rule, make=ordered(orders(t)[order])) for t in traces]
                    cells.append(f"{fmean(map(_value, done)):.4f}, {_missed(done):.2%}")
                sys.stdout.write(f"{name} | {at:g} | {rule} | {' | '.join(cells)}\n")
                sys.stdout.flush()


def _value(done: Run) -> float:
    return done.record.utility / bound_of(done.trace)


def _missed(runs: Sequence[Run]) -> float:
    return fmean(done.record.miss_ratio for done in runs)


if __name__ == "__main__":
    main()

"""What the page costs the sidecar: a batch, a second, a frame. `python -m tests.bench.page`

Rule: a busy second of 16 models, 10 classes and 4 devices; the median of some repetitions, on this
machine, of the process's own time.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import orjson

from tests.unit.proxy.panorama import Panorama
from tritonsched.core.batch import Batch
from tritonsched.core.request import Request
from tritonsched.proxy.frame import frame
from tritonsched.proxy.overview import Overview

MS = 1_000_000
BATCHES = 2000
MEMBERS = 8
REPETITIONS = 15


def batch_us(*, watched: bool) -> float:
    """Both hooks of a batch of MEMBERS requests that waited for four batches."""
    overview = Overview(is_watched=watched)
    batches = [
        Batch(
            number,
            "m",
            "gpu0",
            tuple(Request(k, "m", "c", 0, 1, (number - 4) * 10 * MS) for k in range(MEMBERS)),
            MEMBERS,
            number * 10 * MS,
            number * 10 * MS,
            10 * MS,
        )
        for number in range(BATCHES)
    ]
    began = time.process_time_ns()
    for batch in batches:
        overview.on_dispatch(batch, batch.dispatch_ns)
        overview.on_complete(batch, measured_ns=10 * MS, now=batch.expected_end_ns)
    return (time.process_time_ns() - began) / BATCHES / 1000


def spent_us(call: Callable[[], object]) -> float:
    """One call."""
    began = time.process_time_ns()
    call()
    return (time.process_time_ns() - began) / 1000


def frame_us(made: Panorama) -> tuple[float, float]:
    """The whole frame, and its longest part, between two of which the event loop turns."""
    facts = made.facts()
    coming = frame(made.overview, made.scheduler, made.ledger, facts, made.now)
    parts = []
    with contextlib.suppress(StopIteration):
        while True:
            parts.append(spent_us(partial(next, coming)))
    return sum(parts), max(parts)


def main() -> None:
    made = Panorama([f"m{n}" for n in range(16)], [f"c{n}" for n in range(10)])
    made.seconds(35, per_s=600)
    for watched in (False, True):
        spent = median(batch_us(watched=watched) for _ in range(REPETITIONS))
        who = "somebody looks" if watched else "nobody looks"
        sys.stdout.write(f"a batch of {MEMBERS}, {who}: {spent:.1f} us\n")
    sample = [
        spent_us(lambda: made.overview.sample(made.scheduler, made.ledger, made.now))
        for _ in range(REPETITIONS)
    ]
    sys.stdout.write(f"the look of a second: {median(sample):.0f} us\n")
    frames = [frame_us(made) for _ in range(REPETITIONS)]
    whole, longest = (median(times) for times in zip(*frames, strict=True))
    size = len(orjson.dumps(made.frame()))
    sys.stdout.write(f"a frame: {whole:.0f} us, longest part {longest:.0f} us, {size} bytes\n")


if __name__ == "__main__":
    main()

"""What is sent, and when: fixed before the first request. Rule: pure; chance comes as a seeded
Random.

Open loop: the schedule does not wait for answers, so an overloaded server cannot slow the load
down, and latency counts from the scheduled time (free of coordinated omission).
"""

import random
from dataclasses import dataclass
from enum import StrEnum

REQUESTS_MAX = 5_000_000  # of one run: the schedule is kept in memory
PRIORITY_MAX = 2**31 - 1  # Triton reads 64 bits; nobody has so many levels


class Arrivals(StrEnum):
    """How requests are spread over time."""

    POISSON = "poisson"
    CONSTANT = "constant"


class DeadlineAs(StrEnum):
    """How a deadline is told to the target.

    grpc: as the call's own deadline; the client gives up at it. Never at a bare Triton: 2.51 can
    crash on calls that end in flight (server issues 7368, 8034).
    """

    GRPC = "grpc"
    HEADER = "header"
    TIMEOUT = "timeout"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class LoadClass:
    """A class of requests.

    share: of all requests, > 0. deadline_ms: None for none. timeout_ms: what `--deadline-as
    timeout` tells the server in place of the deadline (Triton's queue timeout ends at batching, so
    a tuned client leaves room for the execution). priority: Triton's, 1 is the highest; 0 for none.
    """

    name: str
    share: float
    deadline_ms: float | None
    timeout_ms: float | None = None
    priority: int = 0

    @property
    def deadline_ns(self) -> int | None:
        return None if self.deadline_ms is None else int(self.deadline_ms * 1e6)


DEFAULT_CLASS = LoadClass("default", 1.0, None)


def parse_class(text: str) -> LoadClass:
    """NAME:SHARE:DEADLINE_MS[:TIMEOUT_MS[:PRIORITY]]; a time is a number or `none`.

    Raises ValueError.
    """
    name, *rest = text.split(":")
    if len(rest) not in (2, 3, 4) or not name:
        raise ValueError(f"class {text!r} is not NAME:SHARE:DEADLINE_MS, for example gold:0.3:30")
    try:
        share = float(rest[0])
        times = [None if word == "none" else float(word) for word in rest[1:3]]
        priority = int(rest[3]) if len(rest) == 4 else 0
    except ValueError:
        raise ValueError(f"class {text!r}: share, times and priority must be numbers") from None
    if not 0 < share < float("inf") or not all(t is None or 0 < t <= 86_400_000 for t in times):
        raise ValueError(f"class {text!r}: share and times must be greater than 0")
    if priority not in range(PRIORITY_MAX + 1):
        raise ValueError(f"class {text!r}: the priority must be 0 to {PRIORITY_MAX}")
    deadline_ms, timeout_ms = (*times, None)[:2]
    return LoadClass(name, share, deadline_ms, timeout_ms, priority)


@dataclass(frozen=True, slots=True)
class Shot:
    """One request of the schedule. at_ns: after the start; payload: number of the payload."""

    at_ns: int
    load_class: int
    payload: int


def schedule(
    *,
    rate: float,
    duration_s: float,
    arrivals: Arrivals,
    classes: tuple[LoadClass, ...],
    payloads: int,
    rng: random.Random,
) -> list[Shot]:
    """The whole run, in order of time. Raises ValueError if it would not fit into memory."""
    if rate * duration_s > REQUESTS_MAX:
        raise ValueError(
            f"{rate * duration_s:.0f} requests are over {REQUESTS_MAX}; shorten the run"
        )
    shots: list[Shot] = []
    shares = [load_class.share for load_class in classes]
    time_s = 0.0
    while True:
        time_s += rng.expovariate(rate) if arrivals is Arrivals.POISSON else 1.0 / rate
        if time_s >= duration_s:
            return shots
        (index,) = rng.choices(range(len(classes)), weights=shares)
        shots.append(Shot(int(time_s * 1e9), index, rng.randrange(payloads)))

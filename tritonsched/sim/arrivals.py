"""When requests come. Rule: a process is a function of dice, passed in; it keeps no state between
calls.

`Arrivals` makes the gaps of one stream. The processes are those of the scheduling studies: cameras
(periodic), independent users (Poisson), bursts (Gamma, MMPP), days (a sine), cloud functions (rates
that wander and spike, after the shape of public traces), and a trace of given times.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count

Gaps = Iterator[int]
"""Nanoseconds from one arrival to the next; the first one counts from time 0."""
Arrivals = Callable[[random.Random], Gaps]
Rate = Callable[[float], float]
"""Arrivals a second at a time in seconds."""
S = 1_000_000_000


def poisson(rate: float) -> Arrivals:
    """Independent arrivals, `rate` a second on average."""

    def gaps(dice: random.Random) -> Gaps:
        draw = dice.expovariate
        per_ns = rate / S
        while True:
            yield round(draw(per_ns))

    return gaps


def gamma(rate: float, *, cv: float) -> Arrivals:
    """Independent gaps with coefficient of variation `cv`; above 1: bursts."""

    def gaps(dice: random.Random) -> Gaps:
        shape = 1.0 / (cv * cv)
        while True:
            yield round(dice.gammavariate(shape, S / (rate * shape)))

    return gaps


def constant(rate: float) -> Arrivals:
    """Equal gaps, the first arrival one gap after 0."""

    def gaps(_: random.Random) -> Gaps:
        gap = round(S / rate)
        while True:
            yield gap

    return gaps


def periodic(period_ns: int, *, jitter_ns: int = 0) -> Arrivals:
    """A camera: a random phase, then one arrival a period, each up to `jitter_ns` late."""
    assert 0 <= jitter_ns < period_ns, "frames that overtake each other are not a period"

    def gaps(dice: random.Random) -> Gaps:
        phase, last = dice.randrange(period_ns), 0
        for frame in count():
            at_ns = phase + frame * period_ns + dice.randint(0, jitter_ns)
            yield at_ns - last
            last = at_ns

    return gaps


def trace(times_ns: Sequence[int]) -> Arrivals:
    """Arrivals at these times, ascending; then none."""

    def gaps(_: random.Random) -> Gaps:
        last = 0
        for at_ns in times_ns:
            assert at_ns >= last, f"a trace goes back at {at_ns} ns"
            yield at_ns - last
            last = at_ns

    return gaps


def bursts(size: int, period_ns: int) -> Arrivals:
    """`size` arrivals at once, every `period_ns`, from time 0 (Shepherd's micro-benchmark)."""

    def gaps(_: random.Random) -> Gaps:
        yield from (0 for _ in range(size))
        while True:
            yield period_ns
            yield from (0 for _ in range(size - 1))

    return gaps


def varying(rate: Rate, *, rate_max: float) -> Arrivals:
    """Poisson with a rate that varies; `rate` must stay within `rate_max`.

    Lewis & Shedler 1979: candidates at the highest rate, each kept with probability rate / max.
    """

    def gaps(dice: random.Random) -> Gaps:
        now = last = 0.0
        while True:
            now += dice.expovariate(rate_max)
            if dice.random() * rate_max < rate(now):
                yield round((now - last) * S)
                last = now

    return gaps


def diurnal(rate: float, *, low: float, high: float, day_s: float) -> Arrivals:
    """A day as a sine between `low` and `high` times the mean rate, starting at its mean."""
    middle, swing = (low + high) / 2, (high - low) / 2

    def at(now: float) -> float:
        return rate * (middle + swing * math.sin(2 * math.pi * now / day_s))

    return varying(at, rate_max=rate * high)


def mmpp(rate: float, *, factor: float, share: float, burst_s: float) -> Arrivals:
    """Poisson whose rate is `factor` times the quiet one for a `share` of the time.

    Bursts last `burst_s` on average, exponentially; `rate` is the mean over both states.
    """
    quiet = rate / (1.0 - share + share * factor)
    lengths = {True: burst_s, False: burst_s * (1.0 - share) / share}
    rates = {True: quiet * factor, False: quiet}

    def gaps(dice: random.Random) -> Gaps:
        burst = dice.random() < share
        now, last, end = 0.0, 0.0, dice.expovariate(1.0 / lengths[burst])
        while True:
            now += dice.expovariate(rates[burst])
            if now < end:
                yield round((now - last) * S)
                last = now
            else:  # memoryless: start again from the change of state
                now, burst = end, not burst
                end += dice.expovariate(1.0 / lengths[burst])

    return gaps


def wandering(
    rate: float, *, step_s: float, spread: float, memory: float, spike: float, spike_share: float
) -> Arrivals:
    """Rates like a cloud function's: log-normal and autocorrelated, a new one every `step_s`.

    spread: sigma of the log rate; memory: AR(1) coefficient in [0, 1); spike: factor on the rate in
    a `spike_share` of the steps. `rate` is the mean.
    """
    mean = math.exp(spread * spread / 2) * (1.0 + spike_share * (spike - 1.0))

    def gaps(dice: random.Random) -> Gaps:
        level, start, last = dice.gauss(0.0, 1.0), 0.0, 0.0
        while True:
            factor = spike if dice.random() < spike_share else 1.0
            now_rate = rate / mean * factor * math.exp(spread * level)
            now = start + dice.expovariate(now_rate)
            while now < start + step_s:
                yield round((now - last) * S)
                last = now
                now += dice.expovariate(now_rate)
            start += step_s
            level = memory * level + math.sqrt(1.0 - memory * memory) * dice.gauss(0.0, 1.0)

    return gaps


def zipf(count_: int, exponent: float) -> list[float]:
    """Shares of `count_` models by popularity, largest first; they add up to 1."""
    weights = [1.0 / (rank**exponent) for rank in range(1, count_ + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]

"""How fast a device is just now, against the tables of its models. Rule: one number a device, moved
a little by every batch and at once by a change.

A GPU that is throttled, or shared with somebody else, slows all its models alike, so what one of
them shows holds for the others. Each batch gives one sample, log(measured / table). In the steady
state the speed is its moving mean, in which one sample counts for at most CLIP spreads (an overrun
is no news). A change is told from noise by Page's cumulative sums of the standardised residuals,
up and down: they fire at the third batch in a row that is far off, later for smaller changes, and
then the speed is the median of the samples since the change began. Doubt follows a change: for
DOUBT_BATCHES promises are longer.
A model of its own whose time changed is not the device's: if the models of a run disagree, the
sums do not fire, and the model's own (in its profile) rescale its table alone.
Sources: Page 1954 (CUSUM), Huber 1964 (the clipped mean), scheduling study 4.9.
"""

import math
from collections import deque
from statistics import median

RATE = 0.1  # of a residual, a batch
HELD = 0.005  # of its log: smaller moves are not told, so that remembered times stay
SPREAD_RATE = 0.05
SPREAD_START = 0.05
SPREAD_MIN, SPREAD_MAX = 0.01, 0.5
TO_SIGMA = 1.25  # of the mean absolute deviation, for a normal one
CLIP = 2.0  # spreads: what one batch may say in the steady state; a host that stalls says little
Z_MAX = 4.0  # spreads: what one batch may add to a sum
ALLOWANCE = 1.0  # spreads a batch: changes below twice that are left to the moving mean
FIRES = 8.0  # a third batch in a row at Z_MAX is above it, a second is not
RUN_MAX = 32  # samples remembered
LOG_MAX = math.log(1000.0)  # no device is a thousand times faster or slower than its tables
DOUBT_BATCHES = 10
DOUBT_SHARE = 0.05  # of the expected time, added to promises while in doubt


def clipped(value: float, most: float) -> float:
    """The value, if it is not beyond that on either side."""
    if value > most:
        return most
    return value if value > -most else -most


class Sums:
    """Page's two cumulative sums. up, down: how far; each with the samples since it was 0."""

    __slots__ = ("_down", "_downs", "_up", "_ups")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nothing suspected."""
        self._up = self._down = 0.0
        self._ups = self._downs = 0

    def observe(self, z: float) -> int:
        """One standardised residual. Returns how many samples back a change began, 0 without one;
        its sign is the change's.
        """
        z = clipped(z, Z_MAX)
        self._up += z - ALLOWANCE
        self._ups += 1
        if self._up <= 0.0:
            self._up, self._ups = 0.0, 0
        self._down -= z + ALLOWANCE
        self._downs += 1
        if self._down <= 0.0:
            self._down, self._downs = 0.0, 0
        if self._up > FIRES:
            return self._ups
        return -self._downs if self._down > FIRES else 0


class DeviceSpeed:
    """The common factor on the tables of one device's models.

    factor: what tables are to be multiplied by, within HELD of the latest. version: moves with it
    and with what promises add; who remembers times checks it. changes: how often a change was
    seen. safety: times that a margin counts in a promise (Tuning).
    """

    __slots__ = (
        "_doubt", "_log", "_run", "_sums", "_told", "changes", "factor", "safety", "spread",
        "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self.factor = 1.0
        self.safety = 1.0
        self.spread = SPREAD_START
        self.version = 0
        self.changes = 0
        self._log = 0.0
        self._told = 0.0  # of which `factor` is
        self._doubt = 0
        self._sums = Sums()
        self._run: deque[tuple[object, float]] = deque(maxlen=RUN_MAX)

    @property
    def doubt(self) -> float:
        """What promises add to the expected time just after a change, as a share of it."""
        return DOUBT_SHARE * self._doubt / DOUBT_BATCHES

    def set_safety(self, safety: float) -> None:
        """From the tuning."""
        if safety != self.safety:
            self.safety = safety
            self.version += 1

    def residual(self, ratio: float) -> float:
        """Log of measured over expected. ratio: log of measured over the table."""
        return ratio - self._log

    def believed(self, residual: float) -> float:
        """As much of it as one batch may say."""
        return clipped(residual, CLIP * self.spread)

    def observe(self, ratio: float, model: object) -> bool:
        """A batch of `model` took exp(ratio) of its table's time; True: that was a change."""
        if self._doubt:
            self._doubt -= 1
            self.version += 1
        residual = self.residual(ratio)
        self._run.append((model, ratio))
        began = self._sums.observe(residual / self.spread)
        if began and self._agreed(began):
            self._change(began)
            return True
        believed = self.believed(residual)
        self._set(self._log + RATE * believed)
        spread = self.spread + SPREAD_RATE * (TO_SIGMA * abs(believed) - self.spread)
        self.spread = max(SPREAD_MIN, min(SPREAD_MAX, spread))
        return False

    def not_the_device(self) -> None:
        """What was suspected is explained by one model."""
        self._sums.reset()
        self._run.clear()

    def _since(self, began: int) -> list[tuple[object, float]]:
        """The samples since the change, which began no earlier than that. What came before the
        first one that is clearly off is noise from before.
        """
        side = 1 if began > 0 else -1
        run = list(self._run)[-abs(began) :]
        off = [side * self.residual(ratio) for _, ratio in run]
        first = next(k for k, value in enumerate(off) if value >= max(off) / 2)
        return run[first:]

    def _agreed(self, began: int) -> bool:
        """Every model that ran since then is off to the same side."""
        side = 1 if began > 0 else -1
        by_model: dict[object, list[float]] = {}
        for model, ratio in self._since(began):
            by_model.setdefault(model, []).append(side * self.residual(ratio))
        return all(median(found) > self.spread for found in by_model.values())

    def _change(self, began: int) -> None:
        self._set(median(ratio for _, ratio in self._since(began)))
        self._doubt = DOUBT_BATCHES
        self.version += 1
        self.changes += 1
        self.not_the_device()

    def _set(self, log: float) -> None:
        self._log = clipped(log, LOG_MAX)
        if abs(self._log - self._told) >= HELD:
            self._told = self._log
            self.factor = math.exp(self._log)
            self.version += 1

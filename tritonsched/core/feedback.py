"""From what was observed to a new Tuning, at a bounded rate, every change explained. Rule: it
listens to the scheduler and returns values; whoever drives the scheduler carries them in.

    scheduler --Observer--> Feedback.step(tuning, now) -> Tuning | None --> scheduler.retune

Both drivers call `step` after a batch came back; it does nothing before `due_ns`. What the event
loop lags (`Lags`) is followed each time; the controllers are asked when a window of time says
enough: misses beyond chance, or WINDOW_REQUESTS answers, or WINDOW_NS_MAX.
Memory: the last SAMPLES slacks and errors, the last LOG_MAX changes of each knob.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from tritonsched.core.batch import Batch
from tritonsched.core.controllers import (
    KNOBS,
    MEASURED,
    RULES,
    Bounds,
    Controller,
    Sample,
    number,
)
from tritonsched.core.observers import Observer
from tritonsched.core.request import Outcome, Request
from tritonsched.core.tuning import GUARD_NS, Tuning

PERIOD_NS = 100_000_000  # at most ten looks a second
WINDOW_NS = 1_000_000_000  # a window is no shorter
WINDOW_NS_MAX = 10_000_000_000  # and no longer
WINDOW_REQUESTS = 1_000  # answers that say enough
SAMPLES = 512
LOG_MAX = 64  # changes remembered of each knob
CHANGE_MIN = 0.2  # of a measured lag: smaller moves are not worth telling the scheduler
LAG_NS_MIN = 20_000
MS = 1_000_000

DEFAULT_BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {
        "safety": Bounds(1.0, 2.0),
        "window": Bounds(0, 10 * MS),
        "rows": Bounds(1, 65_536),
        "queue": Bounds(8, 4096),
        "guard": Bounds(GUARD_NS, 5 * MS),  # earlier than that, late binding is lost
        "reply": Bounds(0, 50 * MS),  # a stall is not a reason to refuse everything
    }
)
DEFAULT_KNOBS = frozenset({"safety", "guard", "reply"})
"""What matters to rules that keep deadlines; the others are for rules that do not."""
FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "safety": "safety",
        "window": "window_ns",
        "rows": "rows_cap",
        "queue": "queue_requests_max",
        "guard": "guard_ns",
        "reply": "reply_ns",
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the policy file says. miss_ratio_max: late or expired, of what was admitted."""

    knobs: frozenset[str] = DEFAULT_KNOBS
    frozen: bool = False
    miss_ratio_max: float = 0.01
    bounds: Mapping[str, Bounds] = field(default_factory=lambda: DEFAULT_BOUNDS)


@dataclass(frozen=True, slots=True)
class Lags:
    """What the event loop lags, in ns: from an answer to the written reply; from the moment a batch
    is due to its message.
    """

    reply_ns: int
    send_ns: int


@dataclass(frozen=True, slots=True)
class Change:
    """A knob was turned. text: one line for people."""

    at_ns: int
    knob: str
    old: float
    new: float
    text: str

    @property
    def direction(self) -> str:
        return "up" if self.new > self.old else "down"


class Feedback(Observer):
    """An Observer that retunes. told: hears of each change."""

    def __init__(
        self, settings: Settings | None = None, *, told: Callable[[Change], None] | None = None
    ) -> None:
        self.settings = settings or Settings()
        self.frozen = self.settings.frozen
        self.due_ns = 0
        self._told = told
        self._log: dict[str, deque[Change]] = {knob: deque(maxlen=LOG_MAX) for knob in KNOBS}
        self._controllers = {knob: Controller(rule) for knob, rule in RULES.items()}
        self._window = _Window(0)

    def adopt(self, settings: Settings) -> None:
        """The policy file changed. Controllers begin anew."""
        self.settings = settings
        self.frozen = settings.frozen
        self._controllers = {knob: Controller(rule) for knob, rule in RULES.items()}

    def log(self) -> list[Change]:
        """The last changes of each knob, in order of time."""
        found = [change for log in self._log.values() for change in log]
        return sorted(found, key=lambda change: change.at_ns)

    def words(self) -> list[str]:
        """The log, a line a change."""
        return [change.text for change in self.log()]

    def step(
        self, tuning: Tuning, now: int, *, queued: int = 0, lags: Lags | None = None
    ) -> Tuning | None:
        """The tuning from now on; None if it stays. queued: most requests that wait for a model."""
        if now < self.due_ns:
            return None
        self.due_ns = now + PERIOD_NS
        made: list[Change] = []
        if lags is not None:
            made += self._followed(tuning, lags, now)
        self._window.queued = max(self._window.queued, queued)
        sample = self._finished(now)
        if sample is not None:
            made += self._controlled(tuning, sample, now)
        if self.frozen or not made:
            return None
        for change in made:
            self._log[change.knob].append(change)
            if self._told is not None:
                self._told(change)
        changes: dict[str, Any] = {FIELDS[c.knob]: _typed(c.knob, c.new) for c in made}
        return replace(tuning, **changes)

    # -- Observer -----------------------------------------------------------------------------

    def on_dispatch(self, batch: Batch, now: int) -> None:
        self._window.sent(batch)

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        self._window.came_back(batch, measured_ns)

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        self._window.left(requests, outcome, now)

    # -- leaves -------------------------------------------------------------------------------

    def _finished(self, now: int) -> Sample | None:
        """The window, if it says enough; the next one begins."""
        window = self._window
        age_ns = now - window.since_ns
        if age_ns < WINDOW_NS:
            return None
        sample = window.sample(age_ns)
        is_telling = sample.admitted >= WINDOW_REQUESTS or age_ns >= WINDOW_NS_MAX
        if not is_telling and not sample.is_bad(self.settings.miss_ratio_max):
            return None
        self._window = _Window(now)
        return sample

    def _controlled(self, tuning: Tuning, sample: Sample, now: int) -> list[Change]:
        made = []
        for knob, controller in self._controllers.items():
            if self.frozen or knob not in self.settings.knobs:
                continue
            bounds = self.settings.bounds[knob]
            # No cap on rows is written as 0.
            old = float(getattr(tuning, FIELDS[knob])) or (bounds.high if knob == "rows" else 0.0)
            moved = controller.moved(old, bounds, sample, self.settings.miss_ratio_max)
            new = _typed(knob, moved)
            if new != old:
                shown, unit = controller.rule.shown, controller.rule.unit
                text = f"{knob} {shown(old)}→{shown(new)}{unit}: {_why(knob, sample)}"
                made.append(Change(now, knob, old, new, text))
        return made

    def _followed(self, tuning: Tuning, lags: Lags, now: int) -> list[Change]:
        wanted = {"guard": GUARD_NS + lags.send_ns, "reply": lags.reply_ns}
        why = {"guard": "messages leave", "reply": "replies are written"}
        made = []
        for knob, value in wanted.items():
            old = getattr(tuning, FIELDS[knob])
            new = int(self.settings.bounds[knob].clamp(value))
            if knob in self.settings.knobs and _matters(old, new):
                divisor, unit = MEASURED[knob]
                lag_ns = lags.send_ns if knob == "guard" else lags.reply_ns
                text = (
                    f"{knob} {number(old / divisor)}→{number(new / divisor)}{unit}: {why[knob]} "
                    f"{number(lag_ns / divisor)}{unit} late at p95"
                )
                made.append(Change(now, knob, old, new, text))
        return made


def _matters(old_ns: int, new_ns: int) -> bool:
    return abs(new_ns - old_ns) > CHANGE_MIN * max(old_ns, LAG_NS_MIN)


def _why(knob: str, sample: Sample) -> str:
    text = sample.misses()
    if knob in ("window", "rows"):
        text = f"fill {sample.fill:.2f}, busy {sample.busy:.2f}, {text}"
    if knob == "safety":
        text += f", execution off by {sample.error_p99:.0%} at p99"
    if knob == "queue":
        text = f"{sample.queued} wait, {text}"
    return text


def _typed(knob: str, value: float) -> int | float:
    return round(value, 4) if knob == "safety" else round(value)


class _Window:
    """What happened since `since_ns`."""

    __slots__ = (
        "_admitted", "_busy_ns", "_capacity", "_errors", "_missed", "_rows",
        "_rows_seen", "_slacks", "queued", "since_ns",
    )  # fmt: skip

    def __init__(self, since_ns: int) -> None:
        self.since_ns = since_ns
        self.queued = 0
        self._admitted = self._missed = self._rows = self._capacity = 0
        self._busy_ns: dict[str, int] = {}
        self._rows_seen: dict[str, int] = {}
        self._slacks: deque[int] = deque(maxlen=SAMPLES)
        self._errors: deque[float] = deque(maxlen=SAMPLES)

    def sent(self, batch: Batch) -> None:
        largest = max(batch.rows, self._rows_seen.get(batch.model, 0))
        self._rows_seen[batch.model] = largest
        self._rows += batch.rows
        self._capacity += largest

    def came_back(self, batch: Batch, measured_ns: int) -> None:
        self._busy_ns[batch.device] = self._busy_ns.get(batch.device, 0) + measured_ns
        self._errors.append(batch.error_of(measured_ns))

    def left(self, requests: Sequence[Request], outcome: Outcome, now: int) -> None:
        if outcome not in (Outcome.REJECTED, Outcome.CANCELLED):
            self._admitted += len(requests)
            if outcome in (Outcome.LATE, Outcome.EXPIRED):
                self._missed += len(requests)
            self._slacks += [r.deadline_ns - now for r in requests if r.has_deadline]

    def sample(self, age_ns: int) -> Sample:
        slacks, errors = sorted(self._slacks), sorted(self._errors)
        return Sample(
            admitted=self._admitted,
            missed=self._missed,
            fill=self._rows / self._capacity if self._capacity else 0.0,
            busy=sum(self._busy_ns.values()) / max(1, len(self._busy_ns)) / age_ns,
            slack_p10_ns=slacks[len(slacks) // 10] if slacks else None,
            error_p99=errors[int(0.99 * (len(errors) - 1))] if errors else 0.0,
            queued=self.queued,
            rows=max(self._rows_seen.values(), default=0),
        )

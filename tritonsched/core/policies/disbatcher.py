"""DeepRT's DisBatcher and its deadline-ordered worker (Yang et al., SEC 2021), for any requests.

Time of each queue (the paper's category: model and shape) is cut into windows of equal length,
W = half of the least relative deadline among its requests; the common point of two windows is a
joint. What arrives inside a window becomes one job at the joint, due at the next joint (Theorem 1:
a request's deadline is at least two joints away, so if every job is in time every request is). Of
the closed jobs the earliest due runs first (algorithm 1), none is preempted, and a job larger than
the largest batch is cut. When a tighter request shortens W, the next joint moves to now + W at the
latest and never later.

Early release: an idle device may close a window at once. As printed that voids the guarantee (a
long batch started early makes an urgent category late that has not arrived yet: half of its frames
in the counterexample of the tests), hence the *slack guard*: only if every other category known,
should its window close before the early job ends, could still follow in time, at the full batch.
`strict_guarantee` leaves early release out. The rule serves whatever is queued and refuses nobody:
it is the paper's, admission is core/schedulability.py's.
"""

from dataclasses import dataclass

from tritonsched.core.batching import prefix
from tritonsched.core.policy import Choice, Hold, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import PATIENCE_NS, Request

CATEGORIES_MAX = 1024  # remembered a device; the longest unused is forgotten first

Category = tuple[str, int, bool]


@dataclass(slots=True)
class Windows:
    """A category's windows: a joint and the distance to the next. rows: its largest job so far."""

    joint_ns: int
    window_ns: int
    rows: int = 1

    def tighten(self, window_ns: int, now: int) -> None:
        """A tighter request: shorter windows, the next joint no later than it would be."""
        if window_ns < self.window_ns:
            self.joint_ns = min(self.next_joint_ns(now), now + window_ns)
            self.window_ns = window_ns

    def next_joint_ns(self, at_ns: int) -> int:
        """The first joint after that time."""
        return self.joint_ns + ((at_ns - self.joint_ns) // self.window_ns + 1) * self.window_ns


class Disbatcher:
    """Windows, joints, jobs. strict_guarantee: no early release. guarded: early release only under
    the slack guard; without it the rule is as printed. merges: when jobs of a category are late,
    several windows may share one; without it each window is a job of its own, as printed. State:
    windows by device and category.
    """

    name = "disbatcher"
    keeps_deadlines = False

    def __init__(
        self, *, strict_guarantee: bool = False, guarded: bool = True, merges: bool = True
    ) -> None:
        self._strict = strict_guarantee
        self._guarded = guarded
        self._merges = merges
        self._windows: dict[str, dict[Category, Windows]] = {}

    def choose(
        self, view: SchedulerView, device: str, *, start_ns: int, now: int
    ) -> Choice | Hold | None:
        best: tuple[int, int, RequestQueue, tuple[Request, ...]] | None = None
        first_ns: tuple[int, RequestQueue] | None = None
        queues = view.queues(device)
        for queue in queues:
            windows = self._windows_of(device, queue, now)
            windows.rows = max(windows.rows, queue.rows)
            closed = [r for r in queue if windows.next_joint_ns(r.arrival_ns) <= now]
            if closed:
                oldest_ns = min(request.arrival_ns for request in closed)
                joint_ns = windows.next_joint_ns(oldest_ns)
                if not self._merges:
                    closed = [r for r in closed if windows.next_joint_ns(r.arrival_ns) == joint_ns]
                due_ns = joint_ns + windows.window_ns
                if best is None or (due_ns, closed[0].id) < best[:2]:
                    best = (due_ns, closed[0].id, queue, tuple(closed))
            else:
                joint_ns = windows.next_joint_ns(now)
                if first_ns is None or joint_ns < first_ns[0]:
                    first_ns = (joint_ns, queue)
        if best is not None:
            return _job(view, device, best[2], best[3])
        if first_ns is None:
            return None
        return self._early(view, device, first_ns[1], start_ns) or Hold(first_ns[0])

    def _windows_of(self, device: str, queue: RequestQueue, now: int) -> Windows:
        """The category's windows, made at its first request and tightened by every later one."""
        known = self._windows.setdefault(device, {})
        key = (queue.model, queue.signature, queue.alone)
        window_ns = max(1, min(_relative_ns(request) for request in queue) // 2)
        windows = known.pop(key, None)
        if windows is None:
            oldest_ns = min(request.arrival_ns for request in queue)
            windows = Windows(oldest_ns, window_ns)
        windows.tighten(window_ns, now)
        known[key] = windows  # the last one used is the last one forgotten
        if len(known) > CATEGORIES_MAX:
            del known[next(iter(known))]
        return windows

    def _early(
        self, view: SchedulerView, device: str, queue: RequestQueue, start_ns: int
    ) -> Choice | None:
        """Close this window at once, if that endangers nobody."""
        if self._strict:
            return None
        choice = _job(view, device, queue, tuple(queue))
        rows = sum(request.rows for request in choice.requests)
        end_ns = start_ns + view.safe_ns(queue.model, device, rows) + view.tuning.reply_ns
        if self._guarded and not self._can_follow(view, device, queue, start_ns, end_ns):
            return None
        return choice

    def _can_follow(
        self, view: SchedulerView, device: str, queue: RequestQueue, start_ns: int, end_ns: int
    ) -> bool:
        """The slack guard: whose window closes before the early job ends can follow it in time."""
        mine = (queue.model, queue.signature, queue.alone)
        for other, windows in self._windows[device].items():
            joint_ns = windows.next_joint_ns(start_ns)
            if other == mine or joint_ns >= end_ns:
                continue
            rows = min(windows.rows, 1 if other[2] else view.rows_cap(other[0], device))
            if end_ns + view.safe_ns(other[0], device, rows) > joint_ns + windows.window_ns:
                return False
        return True


def _relative_ns(request: Request) -> int:
    """Without a deadline: the patience that orders it. Of the class that is not in real time."""
    return request.deadline_ns - request.arrival_ns if request.has_deadline else PATIENCE_NS


def _job(
    view: SchedulerView, device: str, queue: RequestQueue, members: tuple[Request, ...]
) -> Choice:
    cap = 1 if queue.alone else view.rows_cap(queue.model, device)
    return Choice(queue, prefix(members, cap), adapts=True)

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
`strict_guarantee` leaves early release out. Requests without a deadline are the class that is not
in real time ("Adaptation Module"): never in a job with others, and only where the device would
idle, in batches under the same guard. The rule serves whatever is queued and refuses nobody:
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
    """A category's windows: a joint and the distance to the next. rows: its largest job so far.
    seen_ns: when it last had a request.
    """

    joint_ns: int
    window_ns: int
    rows: int = 1
    seen_ns: int = 0

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
        for queue in view.queues(device):
            if not queue.deadlines:
                continue
            windows = self._windows_of(device, queue, now)
            job = self._closed(queue, windows, now)
            if job:
                oldest_ns = min(request.arrival_ns for request in job)
                due_ns = windows.next_joint_ns(oldest_ns) + windows.window_ns
                if best is None or (due_ns, job[0].id) < best[:2]:
                    best = (due_ns, job[0].id, queue, job)
            else:
                joint_ns = windows.next_joint_ns(now)
                if first_ns is None or joint_ns < first_ns[0]:
                    first_ns = (joint_ns, queue)
        if best is not None:
            return _job(view, device, best[2], best[3])
        early = self._early(view, device, first_ns[1], start_ns) if first_ns else None
        found = early or self._background(view, device, start_ns=start_ns, now=now)
        if first_ns is None or isinstance(found, Choice):
            return found
        return Hold(min(first_ns[0], found.until_ns) if found else first_ns[0])

    def _closed(self, queue: RequestQueue, windows: Windows, now: int) -> tuple[Request, ...]:
        """Members whose window is over, one window's only unless windows may share a job."""
        job = [r for r in queue.with_deadline() if windows.next_joint_ns(r.arrival_ns) <= now]
        if job and not self._merges:
            first_ns = min(windows.next_joint_ns(r.arrival_ns) for r in job)
            job = [r for r in job if windows.next_joint_ns(r.arrival_ns) == first_ns]
        return tuple(job)

    def _background(
        self, view: SchedulerView, device: str, *, start_ns: int, now: int
    ) -> Choice | Hold | None:
        """The class that is not in real time: who is due first, in the largest batch that every
        real-time category can follow in time, or not before the next joint.
        """
        since_ns = now - PATIENCE_NS
        waiting = [q for q in view.queues(device) if q.deadlines < len(q)]
        for queue in sorted(waiting, key=lambda q: next(q.without_deadline()).due_ns):
            members = tuple(queue.without_deadline())
            while members:
                choice = _job(view, device, queue, members)
                if self._is_safe(view, device, choice, start_ns, since_ns=since_ns):
                    return choice
                members = choice.requests[: len(choice.requests) // 2]
        known = self._windows.get(device, {}).values() if waiting else ()
        joints_ns = [w.next_joint_ns(now) for w in known if w.seen_ns >= since_ns]
        return Hold(min(joints_ns)) if joints_ns else None

    def _windows_of(self, device: str, queue: RequestQueue, now: int) -> Windows:
        """The category's windows, made at its first request and tightened by every later one."""
        known = self._windows.setdefault(device, {})
        key = (queue.model, queue.signature, queue.alone)
        members = list(queue.with_deadline())
        window_ns = max(1, min(r.deadline_ns - r.arrival_ns for r in members) // 2)
        windows = known.pop(key, None)
        if windows is None:
            windows = Windows(min(r.arrival_ns for r in members), window_ns)
        windows.tighten(window_ns, now)
        windows.rows = max(windows.rows, sum(request.rows for request in members))
        windows.seen_ns = now
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
        choice = _job(view, device, queue, tuple(queue.with_deadline()))
        if self._guarded and not self._is_safe(view, device, choice, start_ns):
            return None
        return choice

    def _is_safe(
        self, view: SchedulerView, device: str, choice: Choice, start_ns: int, since_ns: int = 0
    ) -> bool:
        """The slack guard: whose window closes before the job ends can follow it in time. Looked at
        are categories seen since then.
        """
        queue, rows = choice.queue, sum(request.rows for request in choice.requests)
        end_ns = start_ns + view.safe_ns(queue.model, device, rows) + view.tuning.reply_ns
        mine = (queue.model, queue.signature, queue.alone)
        is_background = not choice.requests[0].has_deadline
        for other, windows in self._windows.get(device, {}).items():
            joint_ns = windows.next_joint_ns(start_ns)
            if windows.seen_ns < since_ns or joint_ns >= end_ns:
                continue
            if (other == mine and not is_background) or not view.variants(other[0], device):
                continue  # its own, or of a model that was unloaded
            rows = min(windows.rows, 1 if other[2] else view.rows_cap(other[0], device))
            if end_ns + view.safe_ns(other[0], device, rows) > joint_ns + windows.window_ns:
                return False
        return True


def _job(
    view: SchedulerView, device: str, queue: RequestQueue, members: tuple[Request, ...]
) -> Choice:
    cap = 1 if queue.alone else view.rows_cap(queue.model, device)
    return Choice(queue, prefix(members, cap), adapts=True)

"""DeepRT's admission control, both phases, as the paper has them. Rule: pure tests on a snapshot.

Phase 1 (section "Admission Control") compares utilisation with 1; it is a fast pre-filter that may
refuse what phase 2 accepts (0.2 % of random sets), so it can be switched off. Phase 2 replays the
DisBatcher in virtual time and imitates the deadline-ordered worker job by job. Where the paper's
printed imitator (algorithm 1) releases jobs with `<`, this one uses `<=`: a job released at the
instant another ends is a candidate then, in the test and when it runs.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from tritonsched.core.reservation import Category, Reservation, hyperperiod_ns, window_ns

CostNs = Callable[[str, int], int]
"""Execution time promised for (model, rows)."""


class Job(NamedTuple):
    """A batch in the test: created at a joint, due at the next one."""

    release_ns: int
    due_ns: int
    cost_ns: int


def categories(reservations: Iterable[Reservation]) -> dict[Category, list[Reservation]]:
    """Reservations whose frames may share batches, in the order given."""
    found: defaultdict[Category, list[Reservation]] = defaultdict(list)
    for reservation in reservations:
        found[reservation.category].append(reservation)
    return dict(found)


def utilisation(reservations: Iterable[Reservation], cost_ns: CostNs) -> float:
    """Phase 1: the share of the device that is asked for, U = sum over categories of E[n] / W.

    n = floor(sum of W / p): the floor and the averaging make it optimistic for short windows.
    """
    total = 0.0
    for (model, _), members in categories(reservations).items():
        window = window_ns(members)
        rows = int(sum(window * member.rows / member.period_ns for member in members))
        total += cost_ns(model, rows) / window if rows else 0.0
    return total


def pseudo_jobs(
    reservations: Iterable[Reservation],
    cost_ns: CostNs,
    *,
    rows_max: Mapping[str, int],
    anchors: Mapping[Category, int],
) -> list[Job]:
    """The jobs that the DisBatcher will create, by release time.

    anchors: any joint of a category; else its first frame's arrival. A window's frames beyond
    rows_max become further jobs of the same deadline. Frames after twice the hyperperiod repeat
    what was seen, so they are left out. O(frames).
    """
    jobs: list[Job] = []
    everyone = list(reservations)
    if not everyone:
        return jobs
    end_ns = max(r.start_ns for r in everyone) + 2 * hyperperiod_ns(everyone)
    for category, members in categories(everyone).items():
        window = window_ns(members)
        anchor_ns = anchors.get(category, min(member.start_ns for member in members))
        for number, rows in _windows(members, window, anchor_ns, end_ns).items():
            joint_ns = anchor_ns + (number + 1) * window
            jobs += (
                Job(joint_ns, joint_ns + window, cost_ns(category[0], size))
                for size in _cut(rows, rows_max[category[0]])
            )
    jobs.sort()
    return jobs


def _windows(
    members: Sequence[Reservation], window: int, anchor_ns: int, end_ns: int
) -> dict[int, list[int]]:
    """The rows of one category's frames by number of the window that they arrive in."""
    rows_in: defaultdict[int, list[int]] = defaultdict(list)
    for member in members:
        frames = min(member.frames, -(-(end_ns - member.start_ns) // member.period_ns))
        first = member.start_ns - anchor_ns
        for after in range(first, first + frames * member.period_ns, member.period_ns):
            rows_in[after // window].append(member.rows)
    return rows_in


def _cut(rows: Iterable[int], cap: int) -> list[int]:
    """Rows of each batch when frames are taken in order and a batch has at most `cap`."""
    sizes = [0]
    for more in rows:
        if sizes[-1] and sizes[-1] + more > cap:
            sizes.append(0)
        sizes[-1] += more
    return sizes


def is_schedulable(jobs: Sequence[Job], *, free_ns: int = 0, strict_release: bool = False) -> bool:
    """Phase 2, algorithm 1: no job misses its deadline under non-preemptive EDF.

    jobs: by release time. free_ns: when the running batch ends; it is charged first.
    strict_release: as printed, a job released exactly when another ends comes too late to compete.
    O(jobs log jobs).
    """
    ready: list[tuple[int, int, int]] = []
    t, index, count = free_ns, 0, len(jobs)
    while index < count or ready:
        if not ready:
            t = max(t, jobs[index].release_ns)
            heappush(ready, (jobs[index].due_ns, index, jobs[index].cost_ns))
            index += 1
        else:
            due_ns, _, cost = heappop(ready)
            t += cost
            if t > due_ns:
                return False
        limit_ns = t - 1 if strict_release else t
        while index < count and jobs[index].release_ns <= limit_ns:
            heappush(ready, (jobs[index].due_ns, index, jobs[index].cost_ns))
            index += 1
    return True


def admits(
    reservations: Sequence[Reservation],
    cost_ns: CostNs,
    *,
    rows_max: Mapping[str, int],
    anchors: Mapping[Category, int] | None = None,
    free_ns: int = 0,
    use_utilisation: bool = True,
) -> bool:
    """Both phases. use_utilisation: phase 1 may refuse; phase 2 always decides in the end."""
    if use_utilisation and utilisation(reservations, cost_ns) > 1.0:
        return False
    jobs = pseudo_jobs(reservations, cost_ns, rows_max=rows_max, anchors=anchors or {})
    return is_schedulable(jobs, free_ns=free_ns)

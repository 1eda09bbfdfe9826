"""What the roll-out of `lookahead` sees: queues, variants, devices and times as flat lists.

Rule: it reads the view and makes lists; no choice is made here. A lane is looked at up to
MEMBERS_MAX, a queue is as wide as the mean of its members.
"""

from collections.abc import Sequence

from tritonsched.core.policies.forming import NEVER_NS, Scene
from tritonsched.core.policy import SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Utility
from tritonsched.core.variant import Way

MEMBERS_MAX = 2048  # of a lane: a burst of 1024 seen in half cost 3 points (Shepherd's)


class Line:
    """A queue with its ways to be served. times: safe ns by number of requests, by way and device;
    empty where it does not run. is_unproven: on the first device, in some way.
    """

    __slots__ = ("is_unproven", "queue", "times", "top", "ways")

    def __init__(self, queue: RequestQueue, view: SchedulerView, devices: Sequence[str]) -> None:
        self.queue = queue
        self.is_unproven = False
        width = max(1, round(queue.rows / queue.size))
        ways: dict[str, Way] = {}
        times: dict[tuple[str, str], Sequence[int]] = {}
        self.top: list[str] = []  # by device, the best variant there
        for device in devices:
            there = view.variants(queue.model, device)
            self.top.append(there[0].model if there else "")
            for way in there:
                ways[way.model] = way
                cap = 1 if queue.alone else max(1, view.rows_cap(way.model, device) // width)
                rows = min(cap, queue.size) * width
                safe = view.safe_times(way.model, device, rows)[: rows + 1 : width]
                times[way.model, device] = safe if safe[-1] else [1] * len(safe)  # 0: unproven
                self.is_unproven |= device == devices[0] and not safe[-1]
        self.ways = list(ways.values())
        self.times = [times.get((way.model, device), []) for way in self.ways for device in devices]


def scene_of(lines: Sequence[Line], free_ns: Sequence[int]) -> Scene:
    """All of them on these devices, the one to be filled first."""
    due: list[int] = []
    low: list[int] = []
    high: list[int] = []
    weights: list[float] = []
    line_lane = [0]
    times: list[int] = []
    table: list[int] = []
    cap: list[int] = []
    top: list[int] = []
    way_line: list[int] = []
    for number, line in enumerate(lines):
        for weight, timed, entries in line.queue.lanes():
            low.append(len(due))
            if timed:
                due += [entry[0] for entry in entries[:MEMBERS_MAX]]
            else:
                due += [NEVER_NS] * min(len(entries), MEMBERS_MAX)
            high.append(len(due))
            weights.append(weight)
        line_lane.append(len(low))
        first = len(way_line)
        names = [way.model for way in line.ways]
        top += [first + names.index(name) if name else -1 for name in line.top]
        way_line += [number] * len(names)
        for points in line.times:
            table.append(len(times) if points else -1)
            cap.append(len(points) - 1)
            times += points
    return Scene(
        due, low, high, weights, line_lane,
        [int(line.queue.shaped > 0) for line in lines], [int(len(lines) > 1)] * len(lines),
        way_line, [way.worth for line in lines for way in line.ways],
        times, table, cap, top, free_ns, *_shapes(lines), low.copy(), list(free_ns),
    )  # fmt: skip


def _shapes(
    lines: Sequence[Line],
) -> tuple[list[int], list[int], list[int], list[float], list[float]]:
    """born_ns, shape, shape_from, point_share, point_value; empty if no worth falls."""
    born: list[int] = []
    shape: list[int] = []
    known: dict[Utility, int] = {}
    if any(line.queue.shaped for line in lines):
        for line in lines:
            for _, timed, entries in line.queue.lanes():
                for _, _, request in entries[:MEMBERS_MAX]:
                    born.append(request.arrival_ns)
                    falls = request.utility if timed else None
                    number = -1 if falls is None else known.setdefault(falls, len(known))
                    shape.append(number)
    points = [point for utility in known for point in utility.points]
    ends = [0]
    for utility in known:
        ends.append(ends[-1] + len(utility.points))
    return born, shape, ends, [share for share, _ in points], [value for _, value in points]

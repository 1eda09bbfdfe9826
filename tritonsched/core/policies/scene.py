"""What the roll-out of `lookahead` sees: queues, variants, devices and times as flat lists.

Rule: it reads the view and makes lists; no choice is made here. A lane is looked at up to
MEMBERS_MAX, a queue is as wide as the mean of its members.
"""

from array import array
from collections.abc import Sequence

from tritonsched.core.policies.forming import NEVER_NS, Scene
from tritonsched.core.policy import SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Utility
from tritonsched.core.variant import Way

MEMBERS_MAX = 2048  # of a lane: a burst of 1024 seen in half cost 3 points (Shepherd's)


class Line:
    """A queue with its ways to be served. times: safe ns by number of requests, by way and device;
    empty where it does not run. top: by device, the number of its best way there; -1 without one.
    is_unproven: on the first device, in some way.
    """

    __slots__ = ("_width", "is_unproven", "queue", "times", "top", "ways")

    ways: Sequence[Way]
    top: Sequence[int]
    times: "Sequence[array[int]]"

    def __init__(self, queue: RequestQueue, view: SchedulerView, devices: Sequence[str]) -> None:
        self.queue = queue
        self._width = 1 if queue.rows == queue.size else max(1, round(queue.rows / queue.size))
        if len(devices) == 1:
            self.ways = view.variants(queue.model, devices[0])
            self.top = (0,)  # it is the device's own queue
            here = self.times = [self._points(view, way, devices[0]) for way in self.ways]
        else:
            self._spread(view, devices)
            here = [*self.times[:: len(devices)]]
        self.is_unproven = False
        for points in here:
            if points and not points[-1]:
                self.is_unproven = True

    def _spread(self, view: SchedulerView, devices: Sequence[str]) -> None:
        there = [view.variants(self.queue.model, device) for device in devices]
        self.ways = list({way.model: way for ways in there for way in ways}.values())
        self.top = [self.ways.index(ways[0]) if ways else -1 for ways in there]
        self.times = [
            self._points(view, way, device) if way in ways else array("q")
            for way in self.ways
            for device, ways in zip(devices, there, strict=True)
        ]

    def _points(self, view: SchedulerView, way: Way, device: str) -> "array[int]":
        queue, width = self.queue, self._width
        size = 1
        if not queue.alone:
            cap = view.rows_cap(way.model, device) // width
            size = queue.size if queue.size < cap else max(1, cap)
        rows = size * width
        return view.safe_times(way.model, device, rows)[: rows + 1 : width]


def scene_of(lines: Sequence[Line], free_ns: Sequence[int]) -> Scene:
    """All of them on these devices, the one to be filled first."""
    due = array("q")
    low: list[int] = []
    high: list[int] = []
    weights: list[float] = []
    line_lane = [0]
    members = 0
    times = array("q")
    table: list[int] = []
    cap: list[int] = []
    top: list[int] = []
    way_line: list[int] = []
    for number, line in enumerate(lines):
        for weight, timed, entries in line.queue.lanes():
            low.append(members)
            members += min(len(entries), MEMBERS_MAX)
            if timed:
                due += array("q", [entry[0] for entry in entries[:MEMBERS_MAX]])
            else:
                due += array("q", [NEVER_NS]) * (members - low[-1])
            high.append(members)
            weights.append(weight)
        line_lane.append(len(low))
        first = len(way_line)
        top += [first + way if way >= 0 else -1 for way in line.top]
        way_line += [number] * len(line.ways)
        for points in line.times:
            table.append(len(times) if points else -1)
            cap.append(len(points) - 1)
            times += points if not points or points[-1] else array("q", [1] * len(points))
    return Scene(
        due, low, high, weights, line_lane,
        [int(line.queue.shaped > 0) for line in lines], [int(len(lines) > 1)] * len(lines),
        way_line, [way.worth for line in lines for way in line.ways],
        times, table, cap, top, free_ns, *_shapes(lines), low.copy(), list(free_ns),
        array("d", bytes(8 * len(times))),
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

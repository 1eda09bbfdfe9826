"""Batches as the roll-out of `lookahead` forms them: who is in time, the densest, the head's.

Rule: numbers and indices only, in the part of Python that numba compiles; `kernels.py` compiles
these very functions, and a property test holds both forms to equal choices. No imports but types.
Requests are counted, each as wide as its queue's mean. A lane is the requests of a queue of one
worth, as ascending deadlines; a spot is where a lane stands in a roll-out. A way is a queue with
one of its variants.
Source: scheduling study 5 ("UDR"), step B.
"""

from collections.abc import MutableSequence, Sequence
from typing import NamedTuple

NEVER_NS = 1 << 62  # as in core/request.py: numba wants a literal of this module


class Scene(NamedTuple):
    """What there is, flat. Lines (queues), ways, lanes and devices are numbered; a line's lanes
    follow each other, the most valuable first.

    due: deadlines of all lanes, ns. lane_low, lane_high: each lane's part of `due`.
    line_lane: first lane of each line, and the end. line_shaped: 1 if worth falls before the
    deadline. line_head: 1 if it offers a batch for its head. way_line, way_worth: a way's line, and
    what its answers are worth beside the best one's. table: per way and device, where in `times`
    its safe times by number of requests begin; -1 if it does not run there. cap: most requests a
    batch, likewise. top: per line and device, the way that a roll-out takes; -1 if none. free_ns:
    per device, when its next batch can start.
    Only if a line is shaped: born_ns and shape per member of `due` (-1: a step), and the points of
    shape k at shape_from[k]:shape_from[k + 1] of point_share and point_value.
    spots, clock: room for where the lanes and devices stand in a roll-out. rates: room for the most
    requests a nanosecond up to each number of them; as long as `times`.
    """

    due: Sequence[int]
    lane_low: Sequence[int]
    lane_high: Sequence[int]
    lane_weight: Sequence[float]
    line_lane: Sequence[int]
    line_shaped: Sequence[int]
    line_head: Sequence[int]
    way_line: Sequence[int]
    way_worth: Sequence[float]
    times: Sequence[int]
    table: Sequence[int]
    cap: Sequence[int]
    top: Sequence[int]
    free_ns: Sequence[int]
    born_ns: Sequence[int]
    shape: Sequence[int]
    shape_from: Sequence[int]
    point_share: Sequence[float]
    point_value: Sequence[float]
    spots: MutableSequence[int]
    clock: MutableSequence[int]
    rates: MutableSequence[float]


FLOATS = ("lane_weight", "way_worth", "point_share", "point_value", "rates")


class Fill(NamedTuple):
    """Whom a batch takes: `members` of those who may finish at `filled_ns`. It ends at `end_ns`."""

    filled_ns: int
    members: int
    end_ns: int


def rewind(scene: Scene) -> None:
    """Back to the present."""
    for lane in range(len(scene.spots)):
        scene.spots[lane] = scene.lane_low[lane]
    for device in range(len(scene.clock)):
        scene.clock[device] = scene.free_ns[device]


def in_time(due: Sequence[int], end_ns: int, low: int, high: int) -> int:
    """The first of due[low:high] not before `end_ns` (bisect, which numba does not know)."""
    while low < high:
        middle = (low + high) // 2
        if due[middle] < end_ns:
            low = middle + 1
        else:
            high = middle
    return low


def value(scene: Scene, member: int, end_ns: int) -> float:
    """What is left of a member's worth when it finishes then (`Utility.value_at`)."""
    shape = scene.shape[member]
    if shape < 0:
        return 1.0
    share = (end_ns - scene.born_ns[member]) / max(1, scene.due[member] - scene.born_ns[member])
    first, last = scene.shape_from[shape], scene.shape_from[shape + 1]
    k = first
    while k < last and share >= scene.point_share[k]:
        k += 1
    if k == first:
        return scene.point_value[first]
    before = scene.point_value[k - 1]
    if k == last:
        return before
    span = scene.point_share[k] - scene.point_share[k - 1]
    return before + (share - scene.point_share[k - 1]) / span * (scene.point_value[k] - before)


def worth_of(scene: Scene, lane: int, index: int, count: int, end_ns: int) -> float:
    """What `count` members of a lane from `index` on are worth when they finish then."""
    total = 0.0
    for member in range(index, index + count):
        total += value(scene, member, end_ns)
    return total * scene.lane_weight[lane]


def shaped_worth(scene: Scene, line: int, fill: Fill) -> float:
    """What the batch that `take_dense` would take is worth."""
    total, room = 0.0, fill.members
    for lane in range(scene.line_lane[line], scene.line_lane[line + 1]):
        high = scene.lane_high[lane]
        index = in_time(scene.due, fill.filled_ns, scene.spots[lane], high)
        taken = min(room, high - index)
        if taken > 0:
            room -= taken
            total += worth_of(scene, lane, index, taken, fill.end_ns)
    return total


def left_of(scene: Scene, line: int) -> tuple[int, float]:
    """How many wait, and the weight of the most valuable."""
    left, weight_max = 0, 0.0
    for lane in range(scene.line_lane[line], scene.line_lane[line + 1]):
        more = scene.lane_high[lane] - scene.spots[lane]
        left += more
        if more > 0:
            weight_max = max(weight_max, scene.lane_weight[lane])
    return left, weight_max


def fill_up(scene: Scene, line: int, filled_ns: int, size: int) -> tuple[int, float, int, int]:
    """The most valuable who may finish then: (count, weight, first deadline, last deadline missed);
    -1 if nobody misses it.
    """
    room, weight, first_ns, missed_ns = size, 0.0, NEVER_NS, -1
    for lane in range(scene.line_lane[line], scene.line_lane[line + 1]):
        spot, high = scene.spots[lane], scene.lane_high[lane]
        index = in_time(scene.due, filled_ns, spot, high)
        if index > spot:
            missed_ns = max(missed_ns, scene.due[index - 1])
        taken = min(room, high - index)
        if taken > 0:
            room -= taken
            weight += scene.lane_weight[lane] * taken
            first_ns = min(first_ns, scene.due[index])
    return size - room, weight, first_ns, missed_ns


def densest(scene: Scene, way: int, device: int, ready_ns: int) -> tuple[float, int, int, int, int]:
    """The batch with the most utility per time: (utility, count, safe_ns, latest_ns, filled_ns).

    ready_ns: when it can start, plus the time of the reply. count is 0 if nobody can be in time.
    The sizes walked are those of `batching.densest`.
    """
    line = scene.way_line[way]
    cell = way * len(scene.free_ns) + device
    offset = scene.table[cell]
    left, weight_max = left_of(scene, line)
    size = min(left, scene.cap[cell])
    best, density = (0.0, 0, 0, 0, 0), 0.0
    while size > 0:
        filled_ns = ready_ns + scene.times[offset + size]
        count, worth, first_ns, missed_ns = fill_up(scene, line, filled_ns, size)
        if count > 0:
            safe_ns = scene.times[offset + count]
            if scene.line_shaped[line]:
                worth = shaped_worth(scene, line, Fill(filled_ns, count, ready_ns + safe_ns))
            if worth / safe_ns > density:
                density = worth / safe_ns
                best = worth * scene.way_worth[way], count, safe_ns, first_ns - safe_ns, filled_ns
        if missed_ns >= 0:
            limit_ns = missed_ns - ready_ns
            size = smaller(scene.times, offset, size, limit_ns, density / weight_max)
        elif scene.line_shaped[line]:
            size //= 2
        else:
            break
    return best


def smaller(times: Sequence[int], offset: int, size: int, limit_ns: int, count_ns: float) -> int:
    """The next size at which one more is in time (`limit_ns`), and that could, filled with the
    most valuable, beat `count_ns`, the best so far in members a nanosecond; 0 without one.
    """
    size -= 1
    while size > 0 and (times[offset + size] > limit_ns or size <= count_ns * times[offset + size]):
        size -= 1
    return size


def take_dense(scene: Scene, line: int, fill: Fill) -> None:
    """Move the spots past the most valuable, and past those before them: they are lost."""
    room = fill.members
    for lane in range(scene.line_lane[line], scene.line_lane[line + 1]):
        high = scene.lane_high[lane]
        index = in_time(scene.due, fill.filled_ns, scene.spots[lane], high)
        taken = min(room, high - index)
        if taken > 0:
            room -= taken
            scene.spots[lane] = index + taken


def take_heads(scene: Scene, line: int, fill: Fill) -> float:
    """Move the spots past the earliest due; what these are worth."""
    first, last = scene.line_lane[line], scene.line_lane[line + 1]
    for lane in range(first, last):
        scene.spots[lane] = in_time(
            scene.due, fill.filled_ns, scene.spots[lane], scene.lane_high[lane]
        )
    utility = 0.0
    for _ in range(fill.members):
        best, best_ns = -1, NEVER_NS + 1
        for lane in range(first, last):
            spot = scene.spots[lane]
            if spot < scene.lane_high[lane] and scene.due[spot] < best_ns:
                best, best_ns = lane, scene.due[spot]
        if scene.line_shaped[line]:
            utility += worth_of(scene, best, scene.spots[best], 1, fill.end_ns)
        else:
            utility += scene.lane_weight[best]
        scene.spots[best] += 1
    return utility


def head(scene: Scene, way: int, device: int, ready_ns: int) -> tuple[int, int, int]:
    """The largest batch in order of deadlines that the first of them allows: (count, safe_ns,
    latest_ns). count is 0 if nobody can be in time.
    """
    line = scene.way_line[way]
    cell = way * len(scene.free_ns) + device
    offset = scene.table[cell]
    left, first_ns = 0, NEVER_NS
    for lane in range(scene.line_lane[line], scene.line_lane[line + 1]):
        low, high = scene.lane_low[lane], scene.lane_high[lane]
        index = in_time(scene.due, ready_ns + scene.times[offset + 1], low, high)
        left += high - index
        if index < high:
            first_ns = min(first_ns, scene.due[index])
    size = min(left, scene.cap[cell])
    while size > 0 and ready_ns + scene.times[offset + size] > first_ns:
        size -= 1
    return size, scene.times[offset + size], first_ns - scene.times[offset + size]

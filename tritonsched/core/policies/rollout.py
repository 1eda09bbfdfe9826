"""The roll-out of `lookahead`: candidates, what follows each, and the best of them.

Rule: as in `forming.py`, what numba compiles. Work: O(steps x queues x lanes x log n) a candidate,
and the sizes that `densest` walks.
Source: scheduling study 5 ("UDR"), steps B to D.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from tritonsched.core.policies.forming import (
    NEVER_NS,
    Fill,
    Scene,
    densest,
    head,
    left_of,
    rewind,
    take_dense,
    take_heads,
)

CANDIDATES_MAX = 8  # half of them the densest, half those that must start first
ROUNDED = 1.0 + 1e-9  # a bound is not below what it bounds by its rounding
Found = tuple[int, bool, int, int, int, int, float]
"""A candidate: way, is_head, count, safe_ns, latest_ns, filled_ns, utility. It takes `count` of
those that may finish at filled_ns: the first ones for its head, else the best.
"""
Chosen = tuple[int, bool, int, int, float]
"""The best of them: way (-1: none), is_head, count, filled_ns, density."""


class Terms(NamedTuple):
    """Of one decision. device: the one to be filled. price: utility a nanosecond of a device must
    earn to be worth it. steps: batches that a roll-out looks ahead.
    """

    device: int
    reply_ns: int
    horizon_ns: int
    price: float
    steps: int


def find_rates(scene: Scene) -> None:
    """Fill `rates`."""
    for cell in range(len(scene.table)):
        offset, most = scene.table[cell], 0.0
        if offset >= 0:
            for size in range(1, scene.cap[cell] + 1):
                most = max(most, size / scene.times[offset + size])
                scene.rates[offset + size] = most


def first_due(scene: Scene, line: int) -> int:
    """The earliest deadline of who is left."""
    first_ns = NEVER_NS
    for lane in range(scene.line_lane[line], scene.line_lane[line + 1]):
        if scene.spots[lane] < scene.lane_high[lane]:
            first_ns = min(first_ns, scene.due[scene.spots[lane]])
    return first_ns


def offer_head(scene: Scene, terms: Terms, way: int, found: list[Found]) -> None:
    """Add the way's batch for its head, if it is not the densest one, which was added last."""
    ready_ns = scene.free_ns[terms.device] + terms.reply_ns
    size, safe_ns, latest_ns = head(scene, way, terms.device, ready_ns)
    _, _, count, dense_ns, dense_latest_ns, _, _ = found[len(found) - 1]
    if size == 0 or (size == count and latest_ns + safe_ns == dense_latest_ns + dense_ns):
        return
    cell = way * len(scene.free_ns) + terms.device
    filled_ns = ready_ns + scene.times[scene.table[cell] + 1]
    line = scene.way_line[way]
    utility = take_heads(scene, line, Fill(filled_ns, size, ready_ns + safe_ns))
    utility *= scene.way_worth[way]
    rewind(scene)
    found.append((way, True, size, safe_ns, latest_ns, filled_ns, utility))


def candidates(scene: Scene, terms: Terms) -> list[Found]:
    """Step B: each batch that could be next."""
    found = [(0, False, 0, 0, 0, 0, 0.0)]
    found.pop()  # numba knows the type of what it holds by now
    device = terms.device
    ready_ns = scene.free_ns[device] + terms.reply_ns
    rewind(scene)
    find_rates(scene)
    for way in range(len(scene.way_line)):
        if scene.table[way * len(scene.free_ns) + device] < 0:
            continue
        utility, count, safe_ns, latest_ns, filled_ns = densest(scene, way, device, ready_ns)
        if count > 0:
            found.append((way, False, count, safe_ns, latest_ns, filled_ns, utility))
            if scene.line_head[scene.way_line[way]]:
                offer_head(scene, terms, way, found)
    return found


def worth(terms: Terms, utility: float, safe_ns: int, start_ns: int) -> float:
    """A batch that ends beyond the horizon counts for its part before it."""
    share = min(1.0, (terms.horizon_ns - start_ns) / safe_ns)
    return share * (utility - terms.price * safe_ns)


def soonest(free_ns: Sequence[int]) -> int:
    """The device that is free first."""
    first = 0
    for device in range(1, len(free_ns)):
        if free_ns[device] < free_ns[first]:
            first = device
    return first


def most(scene: Scene, way: int, device: int, by_density: bool) -> float:
    """No batch of the way has a higher rank; most are told from the best by this alone."""
    line, cell = scene.way_line[way], way * len(scene.free_ns) + device
    left, weight_max = left_of(scene, line)
    size = min(left, scene.cap[cell])
    if size == 0:
        return -float(NEVER_NS)
    if not by_density:
        return -float(first_due(scene, line) - scene.times[scene.table[cell] + size])
    if scene.line_shaped[line]:
        return inf
    rate = scene.rates[scene.table[cell] + size]
    return weight_max * scene.way_worth[way] * rate * ROUNDED


def lower(scene: Scene, way: int, device: int, rung: int) -> int:
    """The way of the same queue that many rungs below this one, as far as there are any."""
    found = way
    for _ in range(rung):
        way += 1
        if way == len(scene.way_line) or scene.way_line[way] != scene.way_line[found]:
            break
        if scene.table[way * len(scene.free_ns) + device] >= 0:
            found = way
    return found


def best_pick(
    scene: Scene, device: int, ready_ns: int, by_density: bool, rung: int
) -> tuple[int, float, int, int, int]:
    """The base rule's batch: (way, utility, count, safe_ns, filled_ns); way is -1 without one."""
    best, best_rank = (-1, 0.0, 0, 0, 0), 0.0
    for line in range(len(scene.line_lane) - 1):
        way = scene.top[line * len(scene.free_ns) + device]
        if way < 0:
            continue
        way = lower(scene, way, device, rung)
        if best[0] >= 0 and most(scene, way, device, by_density) <= best_rank:
            continue
        utility, count, safe_ns, latest_ns, filled_ns = densest(scene, way, device, ready_ns)
        if count > 0:
            rank = utility / safe_ns if by_density else -float(latest_ns)
            if best[0] < 0 or rank > best_rank:
                best, best_rank = (way, utility, count, safe_ns, filled_ns), rank
    return best


def drain(scene: Scene, terms: Terms, by_density: bool, rung: int) -> float:
    """Step C: what is collected when each device takes, as soon as it is free, the densest batch or
    the one that must start first. rung: of the variants that serve them, 0 for the best.
    """
    total = 0.0
    for _ in range(terms.steps):
        device = soonest(scene.clock)
        start_ns = scene.clock[device]
        if start_ns >= terms.horizon_ns:
            break
        way, utility, count, safe_ns, filled_ns = best_pick(
            scene, device, start_ns + terms.reply_ns, by_density, rung
        )
        if way < 0:
            scene.clock[device] = NEVER_NS  # no later time is better without arrivals
            continue
        total += worth(terms, utility, safe_ns, start_ns)
        take_dense(scene, scene.way_line[way], Fill(filled_ns, count, 0))
        scene.clock[device] = start_ns + safe_ns
    return total


def score(scene: Scene, terms: Terms, candidate: Found) -> float:
    """The candidate and what the better of both base rules collects after it, with the best
    variants or with those of the candidate's own rung: a lesser one is chosen for the sake of those
    that wait, who are to profit from it again and again.
    """
    way, is_head, count, safe_ns, _, filled_ns, utility = candidate
    line = scene.way_line[way]
    fill = Fill(filled_ns, count, 0)
    start_ns = scene.free_ns[terms.device]
    best = 0.0
    rung = way - scene.top[line * len(scene.free_ns) + terms.device]
    for base in range(4 if rung > 0 else 2):
        rewind(scene)
        if is_head:
            take_heads(scene, line, fill)
        else:
            take_dense(scene, line, fill)
        scene.clock[terms.device] = start_ns + safe_ns
        best = max(best, drain(scene, terms, base % 2 == 1, rung * (base // 2)))
    return worth(terms, utility, safe_ns, start_ns) + best


def shortlist(found: list[Found]) -> list[Found]:
    """Half of those kept are the densest, half must start first."""
    kept = [False] * len(found)
    for half in range(2):
        for _ in range(CANDIDATES_MAX // 2):
            best, best_rank = -1, 0.0
            for k in range(len(found)):
                rank = found[k][6] / found[k][3] if half == 0 else -float(found[k][4])
                if not kept[k] and (best < 0 or rank > best_rank):
                    best, best_rank = k, rank
            kept[best] = True
    return [found[k] for k in range(len(found)) if kept[k]]


def choose(scene: Scene, terms: Terms) -> Chosen:
    """Steps B to D: the best batch."""
    found = candidates(scene, terms)
    if len(found) > CANDIDATES_MAX:
        found = shortlist(found)
    best, best_score, best_density = -1, 0.0, 0.0
    for k in range(len(found)):
        density = found[k][6] / found[k][3]
        value = score(scene, terms, found[k]) if len(found) > 1 else 0.0
        if best < 0 or value > best_score or (value == best_score and density > best_density):
            best, best_score, best_density = k, value, density
    if best < 0:
        return -1, False, 0, 0, 0.0
    way, is_head, count, _, _, filled_ns, _ = found[best]
    return way, is_head, count, filled_ns, best_density

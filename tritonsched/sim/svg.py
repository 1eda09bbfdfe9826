"""Charts as inline SVG, without a library. Rule: strings in, strings out; text is escaped, colours
of axes follow the page's own (light or dark), each mark says its figures when pointed at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 40
LANE = 26  # height of a device in a chart of batches


@dataclass(frozen=True, slots=True)
class Line:
    """points: (x, y, half the interval of y or None), by rising x. dots: marks at the points."""

    name: str
    colour: str
    points: Sequence[tuple[float, float, float | None]]
    dots: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`; text: how a tick is written."""

    label: str
    low: float
    high: float
    text: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Box:
    """A batch in a chart of devices. fill: colour; warned: share of its members that were late."""

    lane: str
    start: float
    end: float
    label: str
    fill: str
    warned: float


def percent(value: float) -> str:
    return f"{value:.0%}"


def plain(value: float) -> str:
    return f"{value:g}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within the range."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / about
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, floor(high / step + 1e-9) + 1)]


def lines(title: str, x: Axis, y: Axis, drawn: Sequence[Line], mark: float | None = None) -> str:
    """A chart of lines. mark: an x to draw a dashed line at."""

    def at(px: float, py: float) -> tuple[float, float]:
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        across = (px - x.low) / ((x.high - x.low) or 1.0)
        up = (min(max(py, y.low), y.high) - y.low) / ((y.high - y.low) or 1.0)
        return LEFT + across * width, HEIGHT - BOTTOM - up * height

    parts = [_axes(title, x, y, at)]
    if mark is not None:
        (left, bottom), (_, top) = at(mark, y.low), at(mark, y.high)
        parts.append(
            f'<line class="mark" x1="{left:.1f}" y1="{bottom:.1f}" x2="{left:.1f}" y2="{top:.1f}"/>'
        )
    parts += [_line(line, x, y, at) for line in drawn]
    return _svg(WIDTH, HEIGHT, title, "".join(parts))


def _line(line: Line, x: Axis, y: Axis, at: Callable[[float, float], tuple[float, float]]) -> str:
    placed = [at(px, py) for px, py, _ in line.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
    parts = [f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"/>']
    for (px, py), (vx, vy, half) in zip(placed, line.points, strict=True):
        if half is not None:
            high, low = at(vx, vy + half)[1], at(vx, vy - half)[1]
            parts.append(
                f'<line x1="{px:.1f}" y1="{high:.1f}" x2="{px:.1f}" y2="{low:.1f}" '
                f'stroke="{line.colour}" opacity="0.5"/>'
            )
        if line.dots:
            near = f"{line.name}: {x.text(vx)}, {y.text(vy)}"
            parts.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{line.colour}">'
                f"<title>{escape(near)}</title></circle>"
            )
    return "".join(parts)


def _axes(title: str, x: Axis, y: Axis, at: Callable[[float, float], tuple[float, float]]) -> str:
    parts = [f'<text x="{LEFT}" y="15" class="title">{escape(title)}</text>']
    for tick in ticks(y.low, y.high):
        left, height = at(x.low, tick)
        right, _ = at(x.high, tick)
        parts.append(
            f'<line class="grid" x1="{left:.1f}" y1="{height:.1f}" x2="{right:.1f}" '
            f'y2="{height:.1f}"/><text x="{left - 6:.1f}" y="{height + 4:.1f}" '
            f'text-anchor="end">{escape(y.text(tick))}</text>'
        )
    for tick in ticks(x.low, x.high):
        across, bottom = at(tick, y.low)
        parts.append(
            f'<text x="{across:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">'
            f"{escape(x.text(tick))}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>'
    )
    return "".join(parts)


def lanes(title: str, start: float, end: float, names: Sequence[str], boxes: Sequence[Box]) -> str:
    """A Gantt chart: a lane a device, a box a batch; a red foot for members that were late."""
    width = 2 * WIDTH
    height = TOP + LANE * len(names) + 24
    scale = (width - LEFT - 2 * RIGHT) / ((end - start) or 1.0)
    parts = [f'<text x="{LEFT}" y="15" class="title">{escape(title)}</text>']
    for number, name in enumerate(names):
        top = TOP + number * LANE
        parts.append(f'<text x="4" y="{top + 16}">{escape(name)}</text>')
        parts += [_box(box, start, end, scale, top) for box in boxes if box.lane == name]
    for tick in ticks(start, end, 10):
        across = LEFT + (tick - start) * scale
        parts.append(
            f'<text x="{across:.1f}" y="{height - 6}" text-anchor="middle">{tick:g} ms</text>'
        )
    return _svg(width, height, title, "".join(parts))


def _box(box: Box, start: float, end: float, scale: float, top: int) -> str:
    low, high = max(box.start, start), min(box.end, end)
    left, width = LEFT + (low - start) * scale, max(1.0, (high - low) * scale - 1.0)
    tall = LANE - 6
    late = tall * box.warned
    foot = (
        f'<rect x="{left:.1f}" y="{top + tall - late:.1f}" width="{width:.1f}" '
        f'height="{late:.1f}" fill="#d33"/>'
    )
    return (
        f'<g><title>{escape(box.label)}</title><rect x="{left:.1f}" y="{top}" width="{width:.1f}" '
        f'height="{tall}" rx="2" fill="{box.fill}"/>{foot if box.warned else ""}</g>'
    )


def _svg(width: int, height: int, title: str, inner: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">{inner}</svg>'
    )

"""A profile as one HTML file that asks for nothing from outside. Rule: every figure on it stands in
the profile; this file only draws.
"""

from collections.abc import Callable
from html import escape

from tritonsched.config.profile_file import ModelTimes, Point, ProfileFile
from tritonsched.sim import svg
from tritonsched.sim.page import COLOURS, document

TITLE = "tritonsched: execution times"
HEADROOM = 1.05  # above the highest value of a chart
_TIMES: dict[str, Callable[[Point], float]] = {
    "p50": lambda point: point.p50_ms,
    "p90": lambda point: point.p90_ms,
    "p99": lambda point: point.p99_ms,
}


def page(profile: ProfileFile) -> str:
    """The whole file."""
    return document(
        TITLE,
        _introduction(profile),
        *(_model(name, model) for name, model in profile.models.items()),
    )


def _introduction(profile: ProfileFile) -> str:
    hardware, triton = profile.hardware, profile.triton
    gpus = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in hardware.gpus) or "no GPU"
    where = f"{hardware.cpu}, {hardware.cores} cores, {gpus}"
    how = f"Triton {triton.version}, transport {triton.transport}, round trip {triton.rtt_ms:g} ms"
    return (
        f"<p class=note>{escape(where)}. {escape(how)} (taken off every time). "
        f"One batch at a time, {escape(profile.made.date)}.</p>"
        f"<p class=note>Made by <code>{escape(profile.made.command)}</code></p>"
    )


def _model(name: str, model: ModelTimes) -> str:
    rows = "".join(
        f"<tr><td>{p.rows}</td><td>{p.p50_ms:.3f}</td><td>{p.p90_ms:.3f}</td>"
        f"<td>{p.p99_ms:.3f}</td><td>{p.max_ms:.3f}</td><td>{_rate(p):.0f}</td><td>{p.runs}</td></tr>"
        for p in model.points
    )
    return (
        f"<h2>{escape(name)}</h2><div class=charts>{_times(model)}{_rates(model)}</div>"
        "<table><tr><th>rows</th><th>p50 ms</th><th>p90 ms</th><th>p99 ms</th><th>max ms</th>"
        f"<th>rows/s</th><th>runs</th></tr>{rows}</table>"
    )


def _times(model: ModelTimes) -> str:
    high = HEADROOM * max(point.p99_ms for point in model.points)
    drawn = [
        svg.Line(name, colour, [(p.rows, value(p), None) for p in model.points])
        for (name, value), colour in zip(_TIMES.items(), COLOURS, strict=False)
    ]
    title = "execution in ms: p50 (lowest), p90, p99"
    return svg.lines(title, _rows_axis(model), svg.Axis("ms", 0.0, high, svg.plain), drawn)


def _rates(model: ModelTimes) -> str:
    points = [(float(point.rows), _rate(point), None) for point in model.points]
    high = HEADROOM * max(rate for _, rate, _ in points)
    drawn = [svg.Line("rows/s", COLOURS[0], points)]
    axis = svg.Axis("rows/s", 0.0, high, svg.plain)
    return svg.lines(
        "rows a second at p50, one batch after the other", _rows_axis(model), axis, drawn
    )


def _rows_axis(model: ModelTimes) -> svg.Axis:
    return svg.Axis("rows of a batch", 0.0, float(model.points[-1].rows), svg.plain)


def _rate(point: Point) -> float:
    return point.rows * 1000.0 / point.p50_ms

"""The report of a campaign as one HTML file that asks for nothing from outside.

Rule: a figure on the page is one of the campaign's rows; this file only arranges them.
"""

from collections.abc import Sequence
from html import escape
from itertools import groupby

from tritonsched.sim import svg
from tritonsched.sim.campaign import FIGURES, WINDOW_NS, Plan, Row
from tritonsched.sim.studies import STUDIES

MS = 1_000_000
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f",
    "#6a3d9a", "#b2df8a", "#17becf", "#bcbd22", "#e377c2", "#1b5e20", "#8d6e63", "#3949ab",
)  # fmt: skip
"""Okabe and Ito's first, which the colour-blind can tell apart."""
GANTTS_MAX = 4  # contenders of a workload whose devices are drawn
USED_MAX = 1.5  # times the deadline, where the chart of answers ends
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #667; --line: #ccc8; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #9aa; --line: #5558; --back: #16181c; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p.note { color: var(--soft); max-width: 46rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: 0.15rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 700; }
td small { color: var(--soft); }
svg { max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg text.title { font-size: 13px; font-weight: 600; fill: var(--ink); }
svg .grid { stroke: var(--line); }
svg .mark { stroke: var(--soft); stroke-dasharray: 4 3; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.key span { margin-right: 1.2rem; white-space: nowrap; }
.key i { display: inline-block; width: 0.9em; height: 0.9em; border-radius: 3px;
  margin-right: 0.35em; vertical-align: -0.1em; }
""".strip()


def page(plan: Plan, rows: Sequence[Row], command: str) -> str:
    """The whole file. command: the line that makes it again."""
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(plan.contenders)}
    sections = [
        _workload(name, list(group), colours)
        for name, group in groupby(rows, key=lambda row: row.workload)
    ]
    return document(
        "tritonsched: simulated workloads",
        _introduction(plan, command),
        _key(colours),
        _overview(plan, rows) if len(sections) > 1 else "",
        *sections,
    )


def document(title: str, *parts: str) -> str:
    """A file with a heading, and these parts of its body below."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            *parts,
            "</body></html>",
            "",
        ]
    )


def _introduction(plan: Plan, command: str) -> str:
    seeds = f"{plan.seeds} seeds" if plan.seeds > 1 else "one seed, hence no confidence intervals"
    return (
        f"<p class=note>About {plan.length} requests a trace, {seeds}; a round trip of "
        f"{plan.rtt_ns / MS:g} ms. Value is utility earned, as a share of what a clairvoyant "
        "scheduler could earn at most, so 1 may be out of anybody's reach. ± is half a 95 % "
        "confidence interval over the seeds. Load 1 is the fluid capacity: the largest batches "
        "that deadlines allow, no device ever idle. Nothing here was measured on a GPU.</p>"
        f"<p class=note>Made by <code>{escape(command)}</code></p>"
    )


def _key(colours: dict[str, str]) -> str:
    marks = (
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in colours.items()
    )
    return f"<p class=key>{''.join(marks)}</p>"


def _overview(plan: Plan, rows: Sequence[Row]) -> str:
    """Value by workload and contender, each at the load nearest to the workload's own."""
    firsts: dict[tuple[str, str], Row] = {}
    for row in rows:
        firsts.setdefault((row.workload, row.contender), row)
    head = "".join(f"<th>{escape(name)}</th>" for name in plan.contenders)
    lines = []
    for workload in plan.workloads:
        found = [firsts[workload, contender] for contender in plan.contenders]
        cells = _cells(found, "value")
        lines.append(f"<tr><td>{escape(_titled(workload, found[0].load))}</td>{cells}</tr>")
    means = [
        sum(firsts[workload, name].mean["value"] for workload in plan.workloads)
        / len(plan.workloads)
        for name in plan.contenders
    ]
    mean = "".join(f"<td>{value:.3f}</td>" for value in means)
    return (
        f"<h2>Value</h2><table><tr><th>workload</th>{head}</tr>{''.join(lines)}"
        f"<tr><td>mean</td>{mean}</tr></table>"
    )


def _cells(found: Sequence[Row], figure: str) -> str:
    best = max(row.mean[figure] for row in found)
    return "".join(
        f"<td{' class=best' if row.mean[figure] >= best else ''}>{_figure(row, figure)}</td>"
        for row in found
    )


def _figure(row: Row, figure: str) -> str:
    value, half = row.mean[figure], row.spread[figure]
    text = f"{value:.1f}" if figure in ("goodput", "rows") else f"{value:.3f}"
    return text if half is None else f"{text} <small>± {half:.{3 if value < 10 else 1}f}</small>"


def _titled(workload: str, load: float) -> str:
    title = STUDIES[workload].title if workload in STUDIES else "named workload"
    return f"{workload} at {load:g}: {title}"


def _workload(name: str, rows: Sequence[Row], colours: dict[str, str]) -> str:
    title = STUDIES[name].title if name in STUDIES else "named workload"
    loads = sorted({row.load for row in rows})
    shown = loads[len(loads) // 2]
    at = [row for row in rows if row.load == shown]
    charts = [_answers(at, colours, shown)]
    if len(loads) > 1:
        charts = [
            _over_load(rows, "goodput", "in time, a second", colours),
            _over_load(rows, "value", "utility / bound", colours),
            *charts,
        ]
    return (
        f"<h2>{escape(name)}: {escape(title)}</h2>{_table(rows)}"
        f"<div class=charts>{''.join(charts)}</div>{''.join(_gantts(at))}"
    )


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f'<th title="{escape(text)}">{name}</th>' for name, text in FIGURES.items())
    lines = [
        f"<tr><td>{escape(row.contender)}</td><td>{row.load:g}</td>"
        + "".join(f"<td>{_figure(row, name)}</td>" for name in FIGURES)
        + "</tr>"
        for row in rows
    ]
    return f"<table><tr><th>contender</th><th>load</th>{head}</tr>{''.join(lines)}</table>"


def _over_load(rows: Sequence[Row], figure: str, label: str, colours: dict[str, str]) -> str:
    loads = [row.load for row in rows]
    high = max(row.mean[figure] for row in rows) * 1.05
    drawn = [
        svg.Line(
            name,
            colour,
            [(r.load, r.mean[figure], r.spread[figure]) for r in rows if r.contender == name],
        )
        for name, colour in colours.items()
    ]
    x = svg.Axis("load", min(loads), max(loads), svg.plain)
    write = svg.plain if figure == "goodput" else "{:.2f}".format
    return svg.lines(f"{label} over load", x, svg.Axis(label, 0.0, high, write), drawn)


def _answers(rows: Sequence[Row], colours: dict[str, str], load: float) -> str:
    """Share of all arrivals that were answered within so much of their deadline."""
    drawn = []
    for row in rows:
        curve = row.sample.curve
        points: list[tuple[float, float, float | None]] = [
            (used, row.sample.answered * k / (len(curve) - 1), None)
            for k, used in enumerate(curve)
            if used <= USED_MAX
        ]
        if points:
            points.append((USED_MAX, points[-1][1], None))
        drawn.append(svg.Line(row.contender, colours[row.contender], points, dots=False))
    x = svg.Axis("time of the answer / deadline; right of 1 it missed", 0.0, USED_MAX, svg.plain)
    y = svg.Axis("answered, of all arrivals", 0.0, 1.0, svg.percent)
    return svg.lines(f"answered, of all arrivals, at load {load:g}", x, y, drawn, mark=1.0)


def _gantts(rows: Sequence[Row]) -> list[str]:
    start, end = (at / MS for at in WINDOW_NS)
    found = []
    drawn = [row for row in rows if row.sample.bars][:GANTTS_MAX]
    models = sorted({bar.model for row in drawn for bar in row.sample.bars})
    fill = {model: COLOURS[k % len(COLOURS)] for k, model in enumerate(models)}
    for row in drawn:
        boxes = [
            svg.Box(
                bar.device,
                bar.start_ns / MS,
                bar.end_ns / MS,
                f"{bar.model}: {bar.rows} rows, {(bar.end_ns - bar.start_ns) / MS:.1f} ms, "
                f"{bar.in_time} requests in time",
                fill[bar.model],
                1.0 - bar.in_time / max(1, bar.requests),
            )
            for bar in row.sample.bars
        ]
        names = sorted({bar.device for bar in row.sample.bars})
        title = f"{row.contender}: batches on the devices; red: members that were late"
        found.append(svg.lanes(title, start, end, names, boxes))
    return [*found, _key(fill)] if found else []

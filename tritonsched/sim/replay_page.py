"""A replay as one HTML file that asks for nothing from outside. Rule: its figures are those of the
table; this file only draws.
"""

from collections.abc import Sequence
from html import escape

from tritonsched.sim import svg
from tritonsched.sim.page import COLOURS, document
from tritonsched.sim.replay import SLICES, Run, S

TITLE = "tritonsched: recorded traffic under other policies"
HEADROOM = 1.05  # above the highest value of a chart


def page(
    runs: Sequence[Run], head: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """The whole file. head, cells: the table as printed. notes: what is to be said of it."""
    return document(
        TITLE,
        *(f"<p class=note>{escape(note)}</p>" for note in notes),
        _key(runs),
        "<div class=charts>",
        _chart("answers in time, a second", runs, [run.account.in_time for run in runs]),
        _chart(
            "late, expired, refused, failed, a second",
            runs,
            [run.account.not_in_time for run in runs],
        ),
        "</div>",
        _table(head, cells),
    )


def _key(runs: Sequence[Run]) -> str:
    marks = "".join(
        f"<span><i style='background:{_colour(number)}'></i>{escape(run.name)}</span>"
        for number, run in enumerate(runs)
    )
    return f"<p class=key>{marks}</p>"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _chart(title: str, runs: Sequence[Run], counts: Sequence[Sequence[int]]) -> str:
    """By when the requests arrived."""
    slice_s = runs[0].duration_ns / SLICES / S
    drawn = [
        svg.Line(
            run.name,
            _colour(number),
            [((k + 0.5) * slice_s, n / slice_s, None) for k, n in enumerate(counts[number])],
            dots=False,
        )
        for number, run in enumerate(runs)
    ]
    high = HEADROOM * max((y for line in drawn for _, y, _ in line.points), default=1.0)
    x = svg.Axis("s of the recording", 0.0, SLICES * slice_s, svg.plain)
    return svg.lines(title, x, svg.Axis("1/s", 0.0, high or 1.0, svg.plain), drawn)


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells
    )
    return f"<table><tr>{top}</tr>{rows}</table>"

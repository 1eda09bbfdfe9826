"""A frame as text for a terminal. Rule: pure; every string of a frame goes through `plain`, because
a model's name may hold control sequences.

The form of a frame: proxy/frame.py. Words and order are the page's (frontend/page/words.js).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]
STYLES = ("blue", "yellow", "green", "red", "magenta", "cyan", "bright_blue", "bright_yellow")
WIDTH = 60  # cells of a device's line: with name and share they fit 80 columns
OUTCOMES = {
    "served": "in time",
    "late": "late",
    "rejected": "refused",
    "expired": "expired",
    "failed": "failed",
    "cancelled": "client left",
}
REFUSALS = {
    "deadline-unreachable": "could not have been in time",
    "queue-full": "the model's queue was full",
    "tenant-queue-full": "the tenant's own part of the queue was full",
    "tenant-over-share": "no room, and the tenant had its share",
    "draining": "the sidecar was shutting down",
    "triton-unavailable": "Triton did not serve the model",
}
WAITS = {
    "same-model": "earlier batches of the same model",
    "other-models": "batches of other models",
    "held": "held: company, a stream, Triton, its turn",
    "resent": "its merged batch had failed",
    "at-once": "nothing (under 1 ms)",
}
CHANGES_SHOWN = 5


def screen(frame: Json) -> RenderableType:
    """Everything, the most urgent first: a low terminal cuts the end off."""
    parts: list[RenderableType] = [_head(frame["sidecar"]), _totals(frame["totals"])]
    parts += [Text(f"! {plain(notice)}", style="yellow") for notice in frame["sidecar"]["notices"]]
    styles = _styles(frame)
    parts += [Text(""), _devices(frame["devices"], styles), Text("")]
    parts.append(Columns([_classes(frame["classes"]), _models(frame["models"], styles)]))
    if len(frame["tenants"]["rows"]) > 1:
        parts += [Text(""), _tenants(frame["tenants"])]
    parts.append(Text(""))
    parts.append(Columns([_waits(frame["waits"]), _refusals(frame["refusals"])]))
    parts.append(Text(""))
    if frame["reservations"]["rows"]:
        parts += [_streams(frame["reservations"]), Text("")]
    parts.append(_tuning(frame["tuning"], frame["prediction"]))
    parts += [Text(f"  {plain(change)}") for change in reversed(frame["changes"][-CHANGES_SHOWN:])]
    return Group(*parts)


def plain(text: object) -> str:
    """Text without anything that a terminal would obey."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(text))


def number(value: float | None) -> str:
    """Three digits or so; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _head(sidecar: Json) -> Text:
    why = sidecar["why_not_ready"]
    is_good = sidecar["server"] == "ready" and not why
    text = Text("tritonsched ", style="bold")
    text.append(plain(why or sidecar["server"]), style="green" if is_good else "bold red")
    about = f"  {sidecar['version']} · rule {sidecar['rule']} · up {sidecar['uptime_s']:.0f} s"
    return text.append(plain(about), style="dim")


def _totals(totals: Json) -> Text:
    per_s = totals["per_s"]
    lost = per_s["late"] + per_s["expired"] + per_s["failed"]
    parts = (
        f"{number(totals['requests_per_s'])} requests/s",
        f"{number(per_s['served'])} in time/s ({percent(totals['in_time_share'])})",
        f"{number(per_s['rejected'])} refused/s",
        f"{number(lost)} late or lost/s",
        f"{totals['waiting']} waiting",
        f"{totals['batches_out']} batches out",
    )
    return Text(" · ".join(parts))


def _styles(frame: Json) -> dict[str, str]:
    names = [row["name"] for row in frame["models"]["rows"]]
    return {name: STYLES[index % len(STYLES)] for index, name in enumerate(names)}


def _table(title: str, *heads: str) -> Table:
    """First column to the left, numbers to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1))
    for index, head in enumerate(heads):
        made.add_column(head, justify="right" if index else "left", header_style="dim")
    return made


def _filled(table: Table, rows: Iterable[Sequence[RenderableType]], hidden: int = 0) -> Table:
    for row in rows:
        table.add_row(*row)
    if hidden:
        table.add_row(f"and {hidden} more")
    return table


def _devices(devices: Json, styles: dict[str, str]) -> Table:
    made = _table(f"Devices, last {devices['chart_s']} s, coloured by model", "", "", "busy")
    span_ms = devices["chart_s"] * 1000
    for row in devices["rows"]:
        line = _line(row["runs"], span_ms, styles)
        made.add_row(Text(plain(row["name"])), line, percent(row["busy_share"]))
    return made


def _line(runs: list[list[Any]], span_ms: float, styles: dict[str, str]) -> Text:
    """A cell a slice of time, marked if a batch ran in its middle."""
    made = Text()
    cell_ms = span_ms / WIDTH
    for cell in range(WIDTH):
        at_ms = (cell + 0.5) * cell_ms - span_ms
        run = next((one for one in reversed(runs) if one[1] <= at_ms <= one[2]), None)
        if run is None:
            made.append("·", style="dim")
        elif run[5] == "failed":
            made.append("x", style="bold red")
        else:
            made.append("█", style=styles.get(run[0], "white"))
    return made


def _classes(classes: Json) -> Table:
    made = _table("Classes", "class", "due, ms", "/s", "in time", *list(OUTCOMES.values())[1:])
    for row in classes["rows"]:
        made.add_row(
            Text(plain(row["name"])),
            number(row["deadline_ms"]),
            number(row["per_s"]),
            percent(row["in_time_share"]),
            *(number(row["recent"][name]) for name in list(OUTCOMES)[1:]),
        )
    return _filled(made, (), classes["hidden"])


def _tenants(tenants: Json) -> Table:
    rows = (
        (
            Text(plain(row["name"])),
            f"{number(row['weight'])} x{number(row['boost'])}",
            percent(row["share"]),
            str(row["waiting"]),
            number(row["per_s"]),
            percent(row["in_time_share"]),
            number(row["recent"]["rejected"]),
        )
        for row in tenants["rows"]
    )
    heads = ("tenant", "worth", "share", "waiting", "/s", "in time", "refused")
    return _filled(_table("Tenants", *heads), rows, tenants["hidden"])


def _models(models: Json, styles: dict[str, str]) -> Table:
    heads = ("model", "waiting", "batches/s", "requests each", "predicted ms", "measured ms")
    rows = (
        (
            Text(plain(row["name"]), style=styles[row["name"]]),
            str(row["waiting"]),
            number(row["batches_per_s"]),
            number(row["requests_per_batch"]),
            number(row["expected_ms"]),
            number(row["measured_ms"]),
        )
        for row in models["rows"]
    )
    return _filled(_table("Models", *heads), rows, models["hidden"])


def _waits(waits: list[Json]) -> Table:
    total = sum(row["seconds"] for row in waits)
    rows = (
        (
            Text(plain(WAITS.get(row["reason"], row["reason"]))),
            str(row["requests"]),
            percent(row["seconds"] / total if total else None),
        )
        for row in waits
    )
    return _filled(_table("Why requests waited", "mostly for", "requests", "of all waiting"), rows)


def _refusals(refusals: Json) -> Table:
    rows = (
        (
            Text(plain(REFUSALS.get(row["reason"], row["reason"]))),
            Text(plain(row["class"])),
            str(row["count"]),
            str(row["recent"]),
        )
        for row in refusals["rows"]
    )
    made = _table("Why requests were refused", "because", "class", "in all", "recent")
    return _filled(made, rows, refusals["hidden"])


def _streams(streams: Json) -> Table:
    rows = (
        (
            Text(plain(f"{row['id']} {row['tenant']}")),
            Text(plain(row["model"])),
            Text(plain(row["device"])),
            number(row["period_ms"]),
            number(row["deadline_ms"]),
            number(row["ends_in_s"]),
        )
        for row in streams["rows"]
    )
    heads = ("stream", "model", "device", "every, ms", "due in, ms", "ends in, s")
    return _filled(_table("Reservations", *heads), rows, streams["hidden"])


def _tuning(tuning: Json, prediction: Json) -> Text:
    set_to = ", ".join(
        f"{name} {number(tuning[f'{key}_ms'])}"
        for key, name in (
            ("window", "window"), ("guard", "guard"), ("reply", "reply"), ("rtt", "round trip"),
        )
    )  # fmt: skip
    off = f"off by {percent(prediction['error_p50'])} (median), {percent(prediction['error_p99'])}"
    return Text(f"Set, in ms: {set_to}. Predictions {off} (99th).")

"""A run's result as a table for people."""

from typing import Any

from rich.table import Table


def table(result: dict[str, Any]) -> Table:
    """One line a class, and a line for all."""
    config = result["config"]
    title = (
        f"{config['model']} at {config['target']} ({config['protocol']}): "
        f"{result['offered_per_s']:g}/s offered, {result['goodput_per_s']:g}/s in time"
    )
    made = Table(title=title, title_justify="left")
    for name in ("class", "deadline", "sent", "in time", "late", "refused", "failed", "unsent"):
        made.add_column(name, justify="left" if name == "class" else "right")
    for name in ("p50", "p90", "p99"):
        made.add_column(f"{name} ms", justify="right")
    for name, row in result["classes"].items():
        deadline = "none" if row["deadline_ms"] is None else f"{row['deadline_ms']:g} ms"
        share = f" ({row['served'] / row['sent']:.1%})" if row["sent"] else ""
        made.add_row(
            name,
            deadline,
            str(row["sent"]),
            f"{row['served']}{share}",
            str(row["late"]),
            _reasons(row["refused"]),
            _reasons(
                row["failed"] | ({"unanswered": row["unanswered"]} if row["unanswered"] else {})
            ),
            str(row["unsent"]),
            *("-" if value is None else f"{value:.1f}" for value in row["latency_ms"].values()),
        )
    lag = result["send_lag_ms"]
    made.caption = (
        f"own send lag p50 {lag['p50']} ms, p99 {lag['p99']} ms; "
        f"own CPU {result['client_cpu_us_per_request']} µs a request; seed {config['seed']}"
    )
    return made


def _reasons(counts: dict[str, int]) -> str:
    if not counts:
        return "0"
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())

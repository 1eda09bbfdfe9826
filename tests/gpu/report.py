"""The kit's report. Rule: what was seen, by which command, on what; figures without a judgement.

Two files of one content: JSON for machines, Markdown for people.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NOTE = (
    "The networks have random weights (seeded): times are those of the networks, answers mean "
    "nothing. Figures are of one machine and one run."
)
REHEARSAL = "A REHEARSAL ON THE CPU. It shows that the kit works and says nothing of any GPU."


def write(report: dict[str, Any], directory: Path, stem: str) -> list[Path]:
    """`stem`.json and `stem`.md in `directory`; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{stem}.json", directory / f"{stem}.md"]
    paths[0].write_text(json.dumps(report, indent=2) + "\n")
    paths[1].write_text(markdown(report))
    return paths


def markdown(report: dict[str, Any]) -> str:
    """The page. report: see `tests.gpu.__main__`; parts that did not run may be missing."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    made = report["made"]
    yield f"# GPU check, {made['date']}"
    yield ""
    yield REHEARSAL if report["rehearsal"] else NOTE
    yield ""
    yield f"tritonsched {made['tritonsched']}, commit {made['commit']}, `{made['command']}`."
    yield f"Outcome: **{report['outcome']}**."
    yield from _section("Found", ("what", "well", "seen"), map(_found, report["found"]))
    yield from _section("Machine", ("part", "is"), _machine(report["hardware"]))
    yield from _section("Versions", ("part", "version"), report.get("versions", {}).items())
    yield from _equal(report)
    yield from _clients(report)
    yield from _transports(report)
    yield from _policies(report)
    if report.get("profile"):
        yield from ("", "## Profile", "", f"`{report['profile']['command']}` wrote")
        yield f"`{report['profile']['file']}`: start a sidecar from it with `--profile`."


def _machine(hardware: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "processor", f"{hardware['cpu']}, {hardware['cores']} cores"
    for number, gpu in enumerate(hardware["gpus"]):
        yield f"gpu:{number}", f"{gpu['name']}, driver {gpu['driver']}"


def _found(entry: dict[str, Any]) -> tuple[Any, ...]:
    return (entry["name"], "yes" if entry["ok"] else "no", entry["text"])


def _equal(report: dict[str, Any]) -> Iterator[str]:
    rows = [
        (e["model"], e["rows"], e["batches"], e["bytes"], "yes" if e["equal"] else "NO", e["worst"])
        for e in report.get("equal", ())
    ]
    head = ("model", "rows", "batches", "bytes compared", "equal", "largest difference")
    yield from _section(f"{_tested(report)} against gRPC bytes", head, rows)


def _clients(report: dict[str, Any]) -> Iterator[str]:
    rows = [
        (
            e["model"],
            e["regions"],
            e["clients"],
            e["requests"],
            "yes" if e["equal"] else "NO",
            e["batches"],
        )
        for e in report.get("clients", ())
    ]
    head = ("model", "regions", "clients", "requests", "equal", "merged batches by transport")
    yield from _section("Clients with regions of their own, through a sidecar", head, rows)


def _transports(report: dict[str, Any]) -> Iterator[str]:
    rows = [
        (e["model"], e["rows"], e["transport"], e["p50_ms"], e["p90_ms"], e["cpu_us"])
        for e in report.get("transports", ())
    ]
    head = ("model", "rows", "transport", "p50 ms", "p90 ms", "sidecar CPU us a batch")
    yield from _section("Transports: one batch at a time", head, rows)


def _policies(report: dict[str, Any]) -> Iterator[str]:
    rows = [
        (e["rule"], e["transport"], e["rate"], e["goodput"], e["in_time"], e["refused"], e["late"])
        for e in report.get("policies", ())
    ]
    head = ("rule", "transport", "offered/s", "in time/s", "in time", "refused", "late")
    yield from _section("Rules under load", head, rows)


def _tested(report: dict[str, Any]) -> str:
    return "System shared memory" if report["rehearsal"] else "CUDA shared memory"


def _section(title: str, head: Sequence[str], rows: Any) -> Iterator[str]:
    """A table; nothing if it has no rows."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    if lines:
        yield from ("", f"## {title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head))
        yield from lines

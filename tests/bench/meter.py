"""What processes cost and how fast they answered. Rule: CPU is the kernel's count in ns (schedstat)
of every thread of a process and of its children; wall clocks on a shared machine say little.
"""

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tritonsched.doctor import is_compiled

ROOT = Path(__file__).parents[2]


def cpu_ns(pid: int) -> int:
    """CPU time so far of a process and its children, all threads that live."""
    process = psutil.Process(pid)
    total = 0
    for each in (process, *process.children(recursive=True)):
        for task in Path("/proc", str(each.pid), "task").glob("*/schedstat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                total += int(task.read_text().split()[0])
    return total


def quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def median(values: Iterable[float]) -> float:
    """NaN of nothing."""
    found = list(values)
    return statistics.median(found) if found else math.nan


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure beside its goal.

    goal: as G4. what: in words, with its unit. value: NaN if it could not be measured. limit: None
    for a figure that is only told. at_least: whether more is better. reason: why it is missed.
    """

    goal: str
    what: str
    value: float
    limit: float | None = None
    at_least: bool = False
    reason: str = ""

    @property
    def is_reached(self) -> bool:
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return "told"
        if math.isnan(self.value):
            return "not measured"
        return "reached" if self.is_reached else "missed"

    def as_dict(self) -> dict[str, Any]:
        value = None if math.isnan(self.value) else round(self.value, 4)
        return asdict(self) | {"value": value, "verdict": self.verdict}


def table(figures: Sequence[Figure]) -> str:
    """Markdown, a line a figure; the reasons of those that are missed below it."""
    lines = ["| goal | what | value | asked | |", "|---|---|---|---|---|"]
    for figure in figures:
        asked = "-"
        if figure.limit is not None:
            asked = f"{'≥' if figure.at_least else '≤'} {figure.limit:g}"
        value = "-" if math.isnan(figure.value) else f"{figure.value:.3g}"
        lines.append(f"| {figure.goal} | {figure.what} | {value} | {asked} | {figure.verdict} |")
    lines += [
        f"\n{figure.goal}, {figure.what}: {figure.reason}"
        for figure in figures
        if not figure.is_reached and figure.reason
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What a reader needs to compare two runs."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "commit": described.stdout.strip(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "compiled": is_compiled(),
        "load": round(os.getloadavg()[0], 1),
    }


def dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

"""What is wrong with a policy file, each fault with its place. Rule: a fault is data; how it looks
is the last step.

`text` is `file:line:col: path: message` (editors and compilers' readers know it), `json` a list of
objects, `github` workflow commands that annotate the line in a pull request.
"""

import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from tritonsched.errors import ConfigError

SHOWN_CHARS = 64  # of what stands in the file


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault. line and column start at 1; path is dotted, empty for the whole file."""

    line: int
    column: int
    path: str
    message: str


class PolicyFaults(ConfigError):
    """A policy file that cannot be used. name: of the file; faults: at least one, by place."""

    def __init__(self, name: str, faults: Iterable[Fault]) -> None:
        self.name = name
        self.faults = tuple(sorted(faults))
        super().__init__(as_text(name, self.faults))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing. Long words are cut: comparing them is quadratic."""
    close = difflib.get_close_matches(given[:SHOWN_CHARS], list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def as_text(name: str, faults: Iterable[Fault]) -> str:
    """One line a fault."""
    lines = []
    for fault in faults:
        where = f"{fault.path}: " if fault.path else ""
        lines.append(f"{name}:{fault.line}:{fault.column}: {where}{fault.message}")
    return "\n".join(lines)


def as_json(name: str, faults: Iterable[Fault]) -> str:
    """A list of objects; `[]` for a good file."""
    return json.dumps([{"file": name, **asdict(fault)} for fault in faults], indent=2)


def as_github(name: str, faults: Iterable[Fault]) -> str:
    """Workflow commands of GitHub Actions (docs: "Workflow commands", error)."""
    return "\n".join(
        f"::error file={_property(name)},line={fault.line},col={fault.column}"
        f"::{_escaped(f'{fault.path}: ' if fault.path else '')}{_escaped(fault.message)}"
        for fault in faults
    )


FORMATS: dict[str, Callable[[str, Iterable[Fault]], str]] = {
    "text": as_text,
    "json": as_json,
    "github": as_github,
}


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")

"""What the simulator's commands say to a person or write for one. Rule: a file that cannot be
written, or a choice that makes no sense, is a line and exit code 2.
"""

import sys
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console

STDERR = Console(stderr=True, highlight=False)


def write(path: Path, text: str) -> None:
    """`-` is standard output."""
    if path == Path("-"):
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        refuse(f"cannot write {path}: {error.strerror}")


def refuse(text: str) -> NoReturn:
    say(text)
    raise typer.Exit(2)


def say(text: str) -> None:
    STDERR.print(f"tritonsched: {text}", markup=False, soft_wrap=True)

"""`tritonsched top`: the page in a terminal. Rule: it reads `/admin/events` and draws each frame
whole; whatever a frame says is shown as text, with unprintable characters replaced.
"""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from tritonsched.admin_request import DEFAULT_ADMIN, admin_request
from tritonsched.top_screen import screen

WAIT_S = 10.0  # for the next frame; they come once a second
FRAME_BYTES_MAX = 4 * 1024 * 1024
PREFIX = b"data: "
ENDED = "the sidecar ended"


def top(
    *,
    admin: Annotated[
        str, typer.Option(help="HOST:PORT or URL of the sidecar's metrics and admin.")
    ] = DEFAULT_ADMIN,
    token: Annotated[
        str | None, typer.Option(envvar="TRITONSCHED_ADMIN_TOKEN", help="As --admin-token.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Show what a running sidecar does: queues, devices, outcomes, reasons."""
    try:
        with closing(frames(admin, token)) as coming:
            _show(coming, once=once)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"tritonsched: no frames from {admin}: {error}\n")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        return


def _show(coming: Iterator[dict[str, Any]], *, once: bool) -> None:
    """On a terminal each frame takes the place of the one before; elsewhere they follow."""
    console = Console(highlight=False)
    if once:
        console.print(screen(next(coming)))
        return
    if not console.is_terminal:
        for frame in coming:
            console.print(screen(frame))
        raise ValueError(ENDED)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for frame in coming:
            live.update(screen(frame), refresh=True)
    raise ValueError(ENDED)


def frames(admin: str, token: str | None) -> Generator[dict[str, Any]]:
    """Frame after frame until the sidecar ends. Raises OSError without a sidecar, ValueError for an
    answer that is none of its.
    """
    request = admin_request(admin, "/admin/events", token)
    try:
        reply = urllib.request.urlopen(request, timeout=WAIT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(_reason(error)) from error
    with reply:
        while line := reply.readline(FRAME_BYTES_MAX):
            if line.startswith(PREFIX):
                yield json.loads(line[len(PREFIX) :])


def _reason(error: urllib.error.HTTPError) -> str:
    """Why it was refused, in the sidecar's own words if it is one."""
    try:
        return str(json.loads(error.read(FRAME_BYTES_MAX))["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"

"""`tritonsched serve`: a sidecar in a process of its own, from its start to a signal.

Rule: what belongs to the process alone (signals, the loop, the garbage collector) is here.
"""

import asyncio
import contextlib
import ctypes
import gc
import resource
import signal
from collections.abc import Coroutine
from typing import Any

import uvloop
from rich.console import Console

from tritonsched.options import ServeOptions
from tritonsched.sidecar import Sidecar

GC_THRESHOLDS = (50_000, 50, 1_000)  # young collections cost 3-5 µs; full ones never run (freeze)


def raise_open_files() -> None:
    """As many open files as the system lets us have: a connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a container may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# A large request's pieces are freed and taken a thousand times a second. glibc gives memory back to
# the kernel each time, and 100 page faults a picture were a third of its CPU. Kept at most: about
# as much as the requests in flight may hold.
MMAP_BYTES = 32 << 20  # larger pieces than this, glibc's bound, are mapped one by one
KEPT_BYTES = 256 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Have malloc keep up to KEPT_BYTES that were freed. False where that is not glibc's."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all((mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES), mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)))


def run_serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartupError if it cannot start."""
    raise_open_files()
    keep_freed_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(options, Console(highlight=False)))


async def _serve(options: ServeOptions, console: Console) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sidecar = Sidecar(options, say=lambda text: console.print(text, markup=False, soft_wrap=True))
    loop.add_signal_handler(signal.SIGHUP, sidecar.reload_soon)
    try:
        await _unless_stopped(sidecar.start(), stop)
        if not stop.is_set():
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
        await stop.wait()
    finally:
        await sidecar.stop()


async def _unless_stopped(start: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Await `start`, but let a signal during a long start end it."""
    starting = asyncio.ensure_future(start)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return
    starting.result()

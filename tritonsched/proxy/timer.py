"""The driver's one timer. Rule: never early by more than its grain; a late one only costs time.

uvloop's own timers move in 1 ms steps and fire up to 1.1 ms early (uvloop issue 359); a timerfd
registered with the loop fires within 0.02-0.1 ms and costs nothing measurable (performance study
E).
"""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import Protocol

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class Timer(Protocol):
    """Calls back once at (or soon after) the armed time; arming again replaces it."""

    def arm(self, at_ns: int | None) -> None: ...

    def close(self) -> None: ...


class _TimeSpec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class TimerFd:
    """A Linux timerfd on CLOCK_MONOTONIC, the clock of `time.monotonic_ns`.

    Python 3.11 and 3.12 have no `os.timerfd_create`, hence ctypes. Raises OSError if the kernel
    refuses.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._check(self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS))
        self._loop = loop
        self._callback = callback
        loop.add_reader(self._fd, self._fired)

    def arm(self, at_ns: int | None) -> None:
        """At a monotonic time in ns; a past time fires at once; None disarms."""
        at_ns = 0 if at_ns is None else max(1, at_ns)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(*divmod(at_ns, 1_000_000_000)))
        pointer = ctypes.byref(spec)
        self._check(self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, pointer, None))

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # re-armed between the wake-up and this read
            return
        self._callback()

    @staticmethod
    def _check(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"timerfd: {os.strerror(number)}")
        return result


class LoopTimer:
    """The event loop's own timer: for platforms without timerfd and for loops with virtual time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, at_ns: int | None) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        if at_ns is not None:
            self._handle = self._loop.call_at(at_ns / 1e9, self._callback)

    def close(self) -> None:
        self.arm(None)


async def pause(seconds: float) -> None:
    """Wait so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()

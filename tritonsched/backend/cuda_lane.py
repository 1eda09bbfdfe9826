"""A thread that does a stream's copies. Rule: the event loop hands over, and hears; it never waits.

A copy is over when the device says so. Polling for that from the loop costs a turn every few
microseconds for as long as the copy takes, in a process whose CPU time is its price; an event that
blocks costs one wake-up. And the calls that begin a copy may block, too, behind whatever else holds
the device's context. So each direction of each device has a thread, which is inside CUDA nearly all
of its time and does not hold the interpreter there.

Bound: what waits belongs to leases, which the pool bounds.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

from tritonsched.backend.cuda import Stream
from tritonsched.errors import CudaFault

Work = Callable[[Stream], None]
Told = Callable[[CudaFault | None], None]


class Lane:
    """One stream and its thread. name: the thread's. Made on the loop that is to hear."""

    def __init__(self, stream: Stream, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._stream = stream
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Work, Told] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Work, told: Told) -> None:
        """Begin the copies of `work`; `told` hears on the loop when they have ended, or failed."""
        self._jobs.put((work, told))

    def end(self) -> None:
        """Finish what was handed over, then end. Blocks: not for the loop."""
        self._jobs.put(None)
        self._thread.join()
        self._stream.close()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, told = job
            fault = self._done(work)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
                self._loop.call_soon_threadsafe(told, fault)

    def _done(self, work: Work) -> CudaFault | None:
        try:
            work(self._stream)
            self._stream.finish()
        except CudaFault as fault:
            return fault
        except Exception as error:  # a mistake of ours must not leave its batch waiting
            return CudaFault(f"internal error: {error!r}")
        return None

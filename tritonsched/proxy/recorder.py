"""`serve --record FILE`: what happens, written aside. Rule: it never holds up the loop and never
hurts a request.

The loop appends what is to be written to a bounded queue; a thread words and writes it, a few lines
at a time, because it shares the interpreter with the loop. A full queue drops lines and counts
them. Whatever the disk says ends the recording with one line of text and a metric.

FILE is the newest file, FILE.1 ... FILE.3 are those before it. A file of another kind is never
moved: a mistyped name must not cost anybody a policy file.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Protocol

from tritonsched.config import recording
from tritonsched.config.schema import PolicyFile
from tritonsched.core.batch import Batch, Grant, Refuse
from tritonsched.core.observers import Observer
from tritonsched.core.request import Outcome, Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant
from tritonsched.options import ServeOptions

FILES_MAX = 4
QUEUE_LINES_MAX = 65_536  # some seconds of a busy sidecar: four lines a request at most
CHUNK_LINES = 32  # worded at once; each write lets go of the interpreter
FLUSH_S = 0.1  # what a crash may cost; the thread wakes no more often
CLOSE_S = 5.0  # for a disk that hangs at shutdown
MODELS_MAX = 4096  # repeated at the begin of each file; later ones are not recorded

Line = Callable[[], str]


class Seen(Protocol):
    """What of the scheduler is recorded when it has changed."""

    tuning: Tuning
    server: ServerState

    def variant(self, model: str) -> Variant | None:
        """How the model is served; None if it is not."""


def open_new(path: Path) -> IO[bytes]:
    """A new file, unbuffered: what was written is on its way."""
    return path.open("xb", buffering=0)


class Recorder(Observer):
    """An Observer of the scheduler that writes. Memory: QUEUE_LINES_MAX lines.

    file_bytes_max: of one file; there are FILES_MAX. told: hears, from another thread, the one line
    that says why recording ended. written: lines so far.
    """

    def __init__(
        self,
        path: Path,
        *,
        file_bytes_max: int,
        policy: PolicyFile,
        told: Callable[[str], None],
        open_file: Callable[[Path], IO[bytes]] = open_new,
    ) -> None:
        self.written = 0
        self.failure = ""
        self._path = path
        self._file_bytes_max = file_bytes_max
        self._policy = policy
        self._told = told
        self._open_file = open_file
        self._queue: deque[Line] = deque()
        self._scheduler: Seen | None = None
        self._tuning: Tuning | None = None
        self._server: ServerState | None = None
        self._models: dict[str, Variant] = {}
        self._standing: dict[str, str] = {}  # the thread's own, as is what it says of the policy
        self._head_policy = policy.model_dump(mode="json")
        self._now = 0
        self._offered = 0
        self._overflowed = 0
        self._file: IO[bytes] | None = None
        self._file_bytes = 0
        self._part = 0
        self._id = str(time.time_ns())
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    # -- in the loop --------------------------------------------------------------------------

    @property
    def dropped(self) -> int:
        """Lines that are in no file: no room in the queue, or recording had ended."""
        return self._offered - self.written if self.failure else self._overflowed

    def watch(self, scheduler: Seen) -> None:
        """Also record what becomes of its tuning, its server and its models."""
        self._scheduler = scheduler

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write what is queued, and end. Blocks, for CLOSE_S at most."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def on_submit(self, request: Request, now: int) -> None:
        self._look(now)
        self._look_at_model(request.model, now)
        self._put(partial(recording.arrive_line, request, now))

    def on_dispatch(self, batch: Batch, now: int) -> None:
        if batch.model != batch.requests[0].model:
            self._look_at_model(batch.model, now)
        self._put(partial(recording.dispatch_line, batch, now))

    def on_complete(self, batch: Batch, *, measured_ns: int, now: int) -> None:
        self._put(partial(recording.complete_line, batch, measured_ns, now))

    def on_outcomes(
        self, requests: Sequence[Request], outcome: Outcome, reason: str, now: int
    ) -> None:
        self._look(now)
        for request in requests:
            self._put(partial(recording.leave_line, request, outcome, reason, now))

    def on_reserve(self, wanted: Reservation, now: int) -> None:
        """A stream asks for a guarantee; said again in each file until it is over."""
        self._put_standing(_stream(wanted.id), partial(recording.reserve_line, wanted, now))

    def on_reserved(self, said: Grant | Refuse, now: int) -> None:
        """It has it, or not, or not any more."""
        self._put(partial(recording.reserved_line, said, now))

    def on_release(self, number: int, now: int) -> None:
        """The stream is over."""
        self._put(partial(self._over_line, number, now))

    def on_policy(self, policy: PolicyFile) -> None:
        """This policy is in force."""
        if policy == self._policy:
            return
        self._policy = policy
        self._put(partial(self._policy_line, policy, self._now))

    def _look_at_model(self, model: str, now: int) -> None:
        variant = self._scheduler.variant(model) if self._scheduler else None
        if variant is not None and variant is not self._models.get(model):
            self._model(variant, now)

    def _model(self, variant: Variant, now: int) -> None:
        if len(self._models) < MODELS_MAX or variant.model in self._models:
            self._models[variant.model] = variant
            self._put_standing(variant.model, partial(recording.model_line, variant, now))

    def _look(self, now: int) -> None:
        """What changed matters from the next request on, so that is when it is asked for."""
        self._now = now
        seen = self._scheduler
        if seen is None:
            return
        if seen.tuning is not self._tuning:
            self._tuning = seen.tuning
            self._put_standing("/tuning", partial(recording.tuning_line, seen.tuning, now))
        if seen.server is not self._server:
            self._server = seen.server
            self._put_standing("/server", partial(recording.server_line, seen.server, now))

    def _put_standing(self, key: str, line: Line) -> None:
        """What the line says holds until another one of its key."""
        self._put(partial(self._standing_line, key, line))

    def _put(self, line: Line) -> None:
        self._offered += 1
        waiting = len(self._queue)
        if self.failure or waiting >= QUEUE_LINES_MAX:
            self._overflowed += 1
            return
        self._queue.append(line)
        if waiting == QUEUE_LINES_MAX // 2:
            self._wake.set()

    # -- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._begin()
            last = False
            while not last:
                self._wake.wait(FLUSH_S)
                self._wake.clear()
                last = self._closing
                self._write_queued()
        except OSError as error:
            self._fail(f"{error.strerror or error}")
        except Exception as error:  # our own mistake must not cost a request, either
            self._fail(repr(error))
        finally:
            if self._file is not None:
                self._file.close()

    def _fail(self, why: str) -> None:
        self.failure = why
        self._queue.clear()
        self._told(
            f"recording to {self._path} ended: {why}; requests are not affected. "
            "Free the disk or name another file, and start again"
        )

    def _write_queued(self) -> None:
        """Write until the queue is empty. Raises OSError."""
        while self._queue:
            many = min(CHUNK_LINES, len(self._queue))
            text = "".join([self._queue.popleft()() for _ in range(many)]).encode()
            if self._file_bytes + len(text) > self._file_bytes_max:
                self._begin()
            self._write(text)
            self.written += many

    def _begin(self) -> None:
        """The next file, with all that is needed to understand it."""
        if self._file is not None:
            self._file.close()
        self._make_room()
        self._file = self._open_file(self._path)
        self._file_bytes = 0
        head = recording.header(
            version=version("tritonsched"),
            recording=self._id,
            part=self._part,
            started=datetime.now(UTC).isoformat(timespec="milliseconds"),
            policy=self._head_policy,
        )
        self._part += 1
        self._write("".join([head, *self._standing.values()]).encode())

    def _standing_line(self, key: str, line: Line) -> str:
        """To be said again in the next file, since nothing before it may be left."""
        text = self._standing[key] = line()
        return text

    def _over_line(self, number: int, now: int) -> str:
        """Nothing that later files need."""
        self._standing.pop(_stream(number), None)
        return recording.release_line(number, now)

    def _policy_line(self, policy: PolicyFile, now: int) -> str:
        self._head_policy = policy.model_dump(mode="json")
        return recording.policy_line(self._head_policy, now)

    def _write(self, text: bytes) -> None:
        assert self._file is not None
        self._file_bytes += len(text)
        rest = memoryview(text)
        while rest:  # an unbuffered file may take a part
            rest = rest[self._file.write(rest) :]

    def _make_room(self) -> None:
        """FILE becomes FILE.1, and so on; the oldest goes. Raises OSError."""
        files = [self._path, *(numbered(self._path, n) for n in range(1, FILES_MAX))]
        for file in files:
            if os.path.lexists(file) and not is_recording(file):
                raise OSError(f"{file} is there and is no recording, so it is left alone")
        for older, newer in zip(reversed(files), reversed(files[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)


def _stream(number: int) -> str:
    """Its key among what stands."""
    return f"/stream/{number}"


def recorders(
    options: ServeOptions, *, say: Callable[[str], None], stack: AsyncExitStack
) -> tuple[Recorder, ...]:
    """One that writes already, or none without --record. It ends with the stack. Call in a loop."""
    if options.record is None:
        return ()
    loop = asyncio.get_running_loop()
    recorder = Recorder(
        options.record,
        file_bytes_max=options.record_bytes,
        policy=options.policy,
        told=lambda text: _tell(loop, say, text),
    )
    recorder.start()
    stack.push_async_callback(asyncio.to_thread, recorder.close)
    return (recorder,)


def _tell(loop: asyncio.AbstractEventLoop, say: Callable[[str], None], text: str) -> None:
    """From the thread to the loop's."""
    loop.call_soon_threadsafe(say, text)


def numbered(path: Path, number: int) -> Path:
    """FILE.1 for number 1."""
    return path.with_name(f"{path.name}.{number}")


def is_recording(path: Path) -> bool:
    """A regular file that begins as ours do. Raises OSError."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return file.read(len(recording.MARK)) == recording.MARK.encode()

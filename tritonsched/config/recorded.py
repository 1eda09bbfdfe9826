"""A recording, read again. Rule: what is whole is used, what is not is told with its place and
counted; only a file that is no recording at all is refused.

A recording may be cut in the middle, miss lines that did not fit the queue, or begin in the middle
of a run because older files are gone. Memory: some 500 bytes a request.
"""

import json
from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from tritonsched.config.recording import FORMAT, MARK
from tritonsched.config.schema import PolicyFile
from tritonsched.core.request import NEVER_NS, Outcome, Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant
from tritonsched.errors import ConfigError

LINE_BYTES_MAX = 4 * 1024 * 1024  # a header with a full policy; others have some hundred bytes
PARTS_MAX = 100  # FILE.1 ... of one recording
FAULTS_SHOWN = 20
TIME_NS_MAX = NEVER_NS
EXEC_NS_MAX = 86_400_000_000_000
WEIGHT_MAX = 1e12  # of a class times a tenant
_Values = Mapping[str, Any]
_TUNING = asdict(Tuning())
_STREAM_NUMBERS = (
    "id", "period_ns", "relative_deadline_ns", "frames", "start_ns", "rows", "signature",
    "jitter_ns",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Left:
    """How a request really ended."""

    at_ns: int
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class Exec:
    """A batch that was executed."""

    at_ns: int
    model: str
    device: str
    rows: int
    exec_ns: int


@dataclass(slots=True)
class Recording:
    """All that was understood of the files. Times: ns after the first line of the first file.

    arrivals: by id, in order; `arrival_ns` is when the request was taken in, and `received_ns` of
    its id when its first byte came. policy: the first one in force. policies: how many were.
    reserved: streams by id, with when they asked. granted: those that were kept. released: (time,
    id) of those that are over.
    faults: the first FAULTS_SHOWN, as `file:line:col: message`; fault_count: all. orphans: lines
    about requests whose arrival is not there.
    """

    policy: PolicyFile = field(default_factory=PolicyFile)
    version: str = ""
    started: str = ""
    files: int = 0
    models: dict[str, Variant] = field(default_factory=dict)
    arrivals: dict[int, Request] = field(default_factory=dict)
    received_ns: dict[int, int] = field(default_factory=dict)
    left: dict[int, Left] = field(default_factory=dict)
    batches: list[Exec] = field(default_factory=list)
    tunings: list[tuple[int, Tuning]] = field(default_factory=list)
    server: list[tuple[int, ServerState]] = field(default_factory=list)
    policies: int = 1
    reserved: dict[int, tuple[int, Reservation]] = field(default_factory=dict)
    released: list[tuple[int, int]] = field(default_factory=list)
    granted: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0
    orphans: int = 0

    @property
    def duration_ns(self) -> int:
        """From the first arrival to the last; at least 1."""
        times = [request.arrival_ns for request in self.arrivals.values()]
        return max(1, max(times) - min(times)) if times else 1


class _Bad(ValueError):
    """A line that cannot be used. column: where, from 1."""

    def __init__(self, message: str, column: int = 1) -> None:
        super().__init__(message)
        self.column = column


def read_recording(path: Path) -> Recording:
    """Everything of FILE and of the older files FILE.1, ... of the same recording.

    Raises ConfigError: FILE cannot be read, is no recording, is of a newer format, or holds no
    arrival.
    """
    recording = Recording()
    reader = _Reader(recording)
    for part in _parts(path):
        reader.read(part)
    if not recording.arrivals:
        raise ConfigError(f"{path}: holds no arrival; record while requests come in")
    return recording


def _parts(path: Path) -> list[Path]:
    """Oldest first."""
    newest = _header(path)
    found = [path]
    for number in range(1, PARTS_MAX):
        older = path.with_name(f"{path.name}.{number}")
        try:
            if _header(older)["id"] != newest["id"]:
                break
        except ConfigError:
            break
        found.append(older)
    return found[::-1]


def _header(path: Path) -> dict[str, Any]:
    """Raises ConfigError with the place."""
    try:
        with path.open("rb") as file:
            line = file.readline(LINE_BYTES_MAX)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not line.startswith(MARK.encode()):
        raise ConfigError(f"{path}:1:1: is no recording; `serve --record FILE` makes one")
    try:
        values = _parsed(line)
        if values.get("format") != FORMAT:
            found = repr(values.get("format"))[:40]
            _bad(f"format {found}; this version reads {FORMAT}: replay it with the one that wrote")
        for name in ("id", "version", "started"):
            _text(values, name)
        PolicyFile.model_validate(values.get("policy"))
    except _Bad as error:
        raise ConfigError(f"{path}:1:{error.column}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("policy", *first["loc"]))
        raise ConfigError(f"{path}:1:1: {where}: {first['msg']}") from error
    return values


class _Reader:
    """Line by line into a Recording."""

    def __init__(self, recording: Recording) -> None:
        self._made = recording
        self._origin_ns: int | None = None
        self._kinds: Mapping[str, Callable[[_Values, int], None]] = {
            "arrive": self._arrive,
            "leave": self._leave,
            "complete": self._complete,
            "dispatch": self._dispatch,
            "model": self._model,
            "tuning": self._tuning,
            "server": self._server,
            "policy": self._policy,
            "reserve": self._reserve,
            "grant": self._grant,
            "refuse": self._refuse,
            "release": self._release,
        }

    def read(self, path: Path) -> None:
        head = _header(path)
        made = self._made
        if not made.files:
            made.policy = PolicyFile.model_validate(head["policy"])
            made.version, made.started = head["version"], head["started"]
        made.files += 1
        for number, line in _lines(path):
            try:
                self._take(line)
            except _Bad as error:
                made.fault_count += 1
                if len(made.faults) < FAULTS_SHOWN:
                    made.faults.append(f"{path}:{number}:{error.column}: {error}")

    def _take(self, line: bytes) -> None:
        values = _parsed(line)
        kind = self._kinds.get(_text(values, "what"))
        if kind is None:
            _bad(f"what: {values['what'][:40]!r} is unknown; use {', '.join(self._kinds)}")
        at_ns = _time(values, "at_ns")
        if self._origin_ns is None:
            self._origin_ns = at_ns
        kind(values, max(0, at_ns - self._origin_ns))

    def _arrive(self, values: _Values, at_ns: int) -> None:
        number, made = _whole(values, "id"), self._made
        if number in made.arrivals:
            _bad(f"id: {number} arrived before")
        last = next(reversed(made.arrivals.values()), None)
        if last is not None and at_ns < last.arrival_ns:
            _bad("at_ns: earlier than the arrival before it")
        deadline = values.get("deadline_ns")
        origin = self._origin_ns or 0
        received_ns = _time(values, "received_ns") - origin
        made.arrivals[number] = Request(
            id=number,
            model=_text(values, "model"),
            slo=_text(values, "class"),
            signature=_whole(values, "signature", low=0),
            rows=_whole(values, "rows", high=1 << 31),
            arrival_ns=at_ns,
            deadline_ns=NEVER_NS if deadline is None else _time(values, "deadline_ns") - origin,
            weight=_positive(values, "weight", high=WEIGHT_MAX),
            alone=_flag(values, "alone"),
            tenant=_text(values, "tenant") if "tenant" in values else "",
            reservation=_whole(values, "reservation") if "reservation" in values else 0,
        )
        made.received_ns[number] = received_ns

    def _leave(self, values: _Values, at_ns: int) -> None:
        number, reason = _whole(values, "id"), _text(values, "reason")
        word = _text(values, "outcome")
        try:
            outcome = Outcome(word)
        except ValueError:
            _bad(f"outcome: {word[:40]!r} is unknown; use {', '.join(Outcome)}")
        if number not in self._made.arrivals:
            self._made.orphans += 1
        elif number in self._made.left:
            _bad(f"id: {number} left before")
        else:
            self._made.left[number] = Left(at_ns, outcome, reason)

    def _complete(self, values: _Values, at_ns: int) -> None:
        insort(
            self._made.batches,
            Exec(
                at_ns,
                _text(values, "model"),
                _text(values, "device"),
                _whole(values, "rows", high=1 << 31),
                _whole(values, "exec_ns", low=0, high=EXEC_NS_MAX),
            ),
        )

    def _dispatch(self, values: _Values, at_ns: int) -> None:
        """For people: a replay decides by itself."""
        _whole(values, "batch")

    def _model(self, values: _Values, at_ns: int) -> None:
        devices = values.get("devices")
        if not isinstance(devices, list) or not all(isinstance(name, str) for name in devices):
            _bad("devices: must be a list of names")
        try:
            variant = Variant(
                _text(values, "model"),
                _whole(values, "rows_max"),
                tuple(devices),
                _positive(values, "accuracy", high=1.0, default=1.0),
            )
        except ValueError as error:
            raise _Bad(str(error)) from error
        self._made.models[variant.model] = variant

    def _tuning(self, values: _Values, at_ns: int) -> None:
        known = {name: values[name] for name in _TUNING if name in values}
        for name, value in known.items():
            kind = type(_TUNING[name])
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits or not 0 <= value <= TIME_NS_MAX:
                _bad(f"{name}: must be {kind.__name__}, >= 0")
        try:
            self._made.tunings.append((at_ns, Tuning(**known)))
        except ValueError as error:
            raise _Bad(str(error)) from error

    def _server(self, values: _Values, at_ns: int) -> None:
        word = _text(values, "state")
        try:
            state = ServerState(word)
        except ValueError:
            _bad(f"state: {word[:40]!r} is unknown; use {', '.join(ServerState)}")
        if not self._made.server or self._made.server[-1][1] is not state:
            self._made.server.append((at_ns, state))

    def _reserve(self, values: _Values, at_ns: int) -> None:
        known = {name: _whole(values, name, low=0) for name in _STREAM_NUMBERS}
        known["start_ns"] -= self._origin_ns or 0
        try:
            wanted = Reservation(
                **known,
                model=_text(values, "model"),
                tenant=_text(values, "tenant"),
                weight=_positive(values, "weight", high=WEIGHT_MAX),
            )
        except ValueError as error:
            raise _Bad(str(error)) from error
        self._made.reserved.setdefault(wanted.id, (at_ns, wanted))  # said again in each file

    def _grant(self, values: _Values, at_ns: int) -> None:
        self._made.granted.add(_whole(values, "id"))

    def _refuse(self, values: _Values, at_ns: int) -> None:
        """For people: a replay decides by itself."""
        _whole(values, "id")

    def _release(self, values: _Values, at_ns: int) -> None:
        self._made.released.append((at_ns, _whole(values, "id")))

    def _policy(self, values: _Values, at_ns: int) -> None:
        self._made.policies += 1


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) after the header."""
    with path.open("rb") as file:
        file.readline(LINE_BYTES_MAX)
        number = 1
        while line := file.readline(LINE_BYTES_MAX):
            number += 1
            yield number, line


def _parsed(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        _bad("the line is cut off; the rest of it is missing", len(line))
    try:
        values = json.loads(line, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise _Bad(f"no JSON: {error.msg}", error.colno) from error
    except (ValueError, RecursionError) as error:  # bytes that are no text, numbers of 5000 digits
        raise _Bad(f"no JSON: {type(error).__name__}") from error
    if not isinstance(values, dict):
        _bad("must be a JSON object")
    return values


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)


def _text(values: _Values, name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        _bad(f"{name}: must be text")
    return value


def _whole(values: _Values, name: str, *, low: int = 1, high: int = TIME_NS_MAX) -> int:
    value = values.get(name)
    if type(value) is not int or not low <= value <= high:
        _bad(f"{name}: must be a whole number from {low} to {high}")
    return value


def _time(values: _Values, name: str) -> int:
    return _whole(values, name, low=0, high=TIME_NS_MAX - 1)


def _positive(values: _Values, name: str, *, high: float, default: float | None = None) -> float:
    value = values.get(name, default)
    if not isinstance(value, int | float) or not 0 < value <= high:
        _bad(f"{name}: must be a number > 0, <= {high:g}")
    return float(value)


def _flag(values: _Values, name: str) -> bool:
    value = values.get(name)
    if not isinstance(value, bool):
        _bad(f"{name}: must be true or false")
    return value


def _bad(message: str, column: int = 1) -> NoReturn:
    raise _Bad(message, column)

"""What a call that goes alone asks of Triton: classes, regions, shapes, depth. Rule: pure, and it
sees at least what Triton sees.

JSON is looked at as text, key by key: a letter may stand as \\u0073, a member twice, and Triton's
parser takes what Python's does not, so that a stricter reader would be looked past. Only where two
things have to be told apart (which output is asked for as classes?) is it parsed, the first of
members with one name counting, as with RapidJSON; what cannot be parsed then counts as the worst.
Cost: one scan a key; a call that may be merged is not looked at.
"""

import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.wire import OFFSET, REGION, SIZE
from tritonsched.tensors import InferCall, Wire

INFLATED_BYTES_MAX = 64 * 1024 * 1024  # of compressed JSON: Triton's own limit since 2.65
ELEMENTS_FREE = 1 << 24  # a tensor of so many elements is no harm, whatever its data
PLACE_MAX = 1 << 62  # no offset and no size is; two of them do not wrap around
ESCAPED_BYTES_MAX = 1024 * 1024  # of JSON with escaped letters, which is slow to look at
PARSED_BYTES_MAX = 4 * 1024 * 1024
DEPTH_FREE = 10_000  # fewer brackets than this are not nested as deep as any rule's bound
MEMBERS_MAX = 8192  # of JSON that are looked at, texts of those names among them
TENSORS_MAX = 1024  # of a gRPC message that are looked at; a call of so many is not read either
ANY = "*"  # an output's name that nothing has: it may be all of them
FILE = "file:"  # of a load's parameter that replaces a file
_CLASSES, _SHAPE, _DATA = "classification", "shape", "data"
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NO_OPENING = bytes(set(range(256)) - set(b"[{"))


class Asked(Protocol):
    """What rules look at. unread: there is too much of it to be looked at."""

    unread: bool

    def regions(self) -> frozenset[str]:
        """Names of shared-memory regions, of inputs and outputs."""

    def places_wrap(self) -> bool:
        """An offset or size is so large that their sum may wrap around."""

    def has_classes(self) -> bool:
        """Some output is asked for as classes."""

    def classes(self) -> frozenset[str]:
        """The outputs asked for as classes; ANY among them if they cannot be told."""

    def has_empty_json(self) -> bool:
        """Over HTTP, some shape has no elements."""

    def is_oversized(self) -> bool:
        """A JSON tensor's shape has many more elements than there can be data for."""

    def depth(self) -> int:
        """Brackets in brackets, of JSON."""


def asked_of(call: InferCall) -> Asked:
    """What the call's own bytes say."""
    if call.wire is Wire.GRPC:
        return GrpcAsked(bytes(call.raw))
    text, cut = _head_of(call)
    return HttpAsked(text, cut=cut)


class HttpAsked:
    """text: the JSON, maybe with what follows it. cut: there is more."""

    def __init__(self, text: bytes, *, cut: bool = False) -> None:
        self._text = text
        is_escaped = _ESCAPED.search(text) is not None
        self.unread = cut or (is_escaped and len(text) > ESCAPED_BYTES_MAX)
        self._ends: dict[str, list[int]] = {name: [] for name in _NAMES}
        members = _members(text) if is_escaped else _plain_members(text)
        for number, (name, end) in enumerate(() if self.unread else members):
            if end:
                self._ends[name].append(end)
            if number == MEMBERS_MAX:
                self.unread = True
                break

    def regions(self) -> frozenset[str]:
        return frozenset(cut_name(_unescaped(found[0])) for found in self._values(_STRING, REGION))

    def places_wrap(self) -> bool:
        numbers = self._values(_NUMBER, OFFSET, SIZE)
        return any(abs(int(found[0])) >= PLACE_MAX for found in numbers)

    def has_classes(self) -> bool:
        return bool(self._ends[_CLASSES])

    def classes(self) -> frozenset[str]:
        if not self.has_classes():
            return frozenset()
        parsed = self._parsed()
        if parsed is None:
            return frozenset({ANY})
        wanted = [entry for entry in _list(parsed, "outputs") if _is_classes(entry)]
        return frozenset(cut_name(str(entry.get("name"))) for entry in wanted)

    def has_empty_json(self) -> bool:
        return any(0 in shape for shape in self._shapes())

    def is_oversized(self) -> bool:
        if not self._ends[_DATA] or not any(map(self._is_too_many, self._shapes())):
            return False
        parsed = self._parsed()
        if parsed is None:
            return True
        given = [entry for entry in _list(parsed, "inputs") if _DATA in entry]
        return any(self._is_too_many(entry[_SHAPE]) for entry in given if _is_dense(entry))

    def depth(self) -> int:
        return depth_of(self._text)

    def _shapes(self) -> Iterator[list[int]]:
        for found in self._values(_EXTENTS, _SHAPE):
            yield [int(extent) for extent in re.findall(rb"\d{1,20}", found[1])]

    def _values(self, pattern: re.Pattern[bytes], *names: str) -> Iterator[re.Match[bytes]]:
        ends = (end for name in names for end in self._ends[name])
        return filter(None, (pattern.match(self._text, end) for end in ends))

    def _is_too_many(self, shape: list[int]) -> bool:
        elements = 1
        for extent in shape:
            elements *= extent
        return elements > max(ELEMENTS_FREE, len(self._text))  # each takes two bytes of JSON

    def _parsed(self) -> Any:
        """The object; None if it is long, or Python cannot read what Triton may."""
        if len(self._text) > PARSED_BYTES_MAX:
            return None
        try:
            return json.loads(self._text.decode(errors="replace"), object_pairs_hook=_first)
        except (ValueError, RecursionError):
            return None


def depth_of(text: bytes) -> int:
    """Brackets in brackets, those in texts aside; 0 if there are only few."""
    if len(text.translate(None, _NO_OPENING)) <= DEPTH_FREE:
        return 0
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    plain = b"".join(unescaped.split(b'"')[::2]).translate(None, _NO_BRACKETS)
    brackets = np.frombuffer(plain, np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
    return int(np.cumsum(steps).max(initial=0))


class GrpcAsked:
    """message: a ModelInferRequest. It has no JSON."""

    unread = False

    def __init__(self, message: bytes) -> None:
        self._message = message

    def regions(self) -> frozenset[str]:
        if REGION.encode() not in self._message:
            return frozenset()
        named = [given[REGION].string_param for given in self._all() if REGION in given]
        return frozenset(map(cut_name, named))

    def places_wrap(self) -> bool:
        if REGION.encode() not in self._message:
            return False
        numbers = [given[key].int64_param for given in self._all() for key in _PLACES & set(given)]
        return any(not 0 <= number < PLACE_MAX for number in numbers)

    def has_classes(self) -> bool:
        return bool(self.classes())

    def classes(self) -> frozenset[str]:
        if _CLASSES.encode() not in self._message:
            return frozenset()
        outputs = islice(self._request().outputs, TENSORS_MAX)
        wanted = [output.name for output in outputs if _CLASSES in output.parameters]
        return frozenset(map(cut_name, wanted))

    def has_empty_json(self) -> bool:
        return False

    def is_oversized(self) -> bool:
        return False

    def depth(self) -> int:
        return 0

    def _all(self) -> list[Any]:
        request = self._request()
        tensors = islice(chain(request.outputs, request.inputs), TENSORS_MAX)
        return [tensor.parameters for tensor in tensors]

    def _request(self) -> Any:
        """One without anything in it if Triton cannot read it either."""
        try:
            return pb.ModelInferRequest.FromString(self._message)
        except DecodeError:
            return pb.ModelInferRequest()


def cut_name(name: str) -> str:
    """As Triton reads it: it ends at a NUL."""
    return name.partition("\0")[0]


def _letters(name: str) -> bytes:
    """A name of which each letter is plain or escaped."""
    return b"".join(b"(?:%c|(?i:\\\\u%04x))" % (ord(c), ord(c)) for c in name)


def _members(text: bytes) -> Iterator[tuple[str, int]]:
    """Names of members, and where their values begin."""
    return ((_unescaped(found[1]), found.end()) for found in _MEMBERS.finditer(text))


def _plain_members(text: bytes) -> Iterator[tuple[str, int]]:
    """The same where no letter is escaped, twenty times as fast."""
    for name in _NAMES:
        quoted = f'"{name}"'.encode()
        start = text.find(quoted)
        while start >= 0:
            begin = start + len(quoted)
            colon = _COLONS.match(text, begin)
            yield name, colon.end() if colon else 0  # 0: it is a value
            start = text.find(quoted, begin)


_PLACES = {OFFSET, SIZE}
_NAMES = (REGION, OFFSET, SIZE, _CLASSES, _SHAPE, _DATA)
_COLON = rb"[ \t\r\n]*:[ \t\r\n]*"
_COLONS = re.compile(_COLON)
_ESCAPED = re.compile(rb"\\u00(?:5[fF]|6[1-9a-fA-F]|7[0-9aA])")  # a letter, as nobody writes it
_MEMBERS = re.compile(b'("(?:' + b"|".join(map(_letters, _NAMES)) + b')")' + _COLON)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NUMBER = re.compile(rb"-?\d{1,40}")
_EXTENTS = re.compile(rb"\[([^\[\]]*)\]")
_REGISTERED = re.compile(b'"' + _letters("offset") + b'"' + _COLON + rb"(-?\d{1,40})")
_FILE = re.compile(b'("' + _letters(FILE) + rb'(?:[^"\\]|\\.)*")' + _COLON, re.DOTALL)


def files_in(body: bytes) -> tuple[str, ...]:
    """The `file:` parameters of a load over HTTP, without that prefix."""
    return tuple(_unescaped(found[1]).removeprefix(FILE) for found in _FILE.finditer(body))


def offsets_in(body: bytes) -> tuple[int, ...]:
    """The offsets that a registration over HTTP may mean."""
    return tuple(int(found[1]) for found in _REGISTERED.finditer(body))


def _head_of(call: InferCall) -> tuple[bytes, bool]:
    """The JSON of an HTTP call, inflated if need be, and whether that was too long."""
    headers = {name.lower(): value for name, value in reversed(call.headers)}
    length = str(headers.get("inference-header-content-length", ""))
    wanted = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
    body = bytes(call.raw)
    cut = False
    if headers.get("content-encoding") in ("gzip", "deflate"):
        body, cut = _inflated(body)
    return body[:wanted], cut and (wanted is None or wanted > len(body))


def _inflated(body: bytes) -> tuple[bytes, bool]:
    """What Triton would read, up to the limit; nothing if it is neither gzip nor deflate."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        text = inflater.decompress(body, INFLATED_BYTES_MAX)
    except zlib.error:
        return b"", False
    return text, bool(inflater.unconsumed_tail)


def _unescaped(text: bytes) -> str:
    try:
        return str(json.loads(text.decode(errors="replace"), strict=False))
    except ValueError:
        return text.decode(errors="replace")[1:-1]


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _list(parsed: Any, member: str) -> list[dict[str, Any]]:
    entries = parsed.get(member) if isinstance(parsed, dict) else None
    entries = entries if isinstance(entries, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def _is_classes(entry: dict[str, Any]) -> bool:
    parameters = entry.get("parameters")
    return isinstance(parameters, dict) and bool(parameters.get(_CLASSES))


def _is_dense(entry: dict[str, Any]) -> bool:
    shape = entry.get("shape")
    plain = isinstance(shape, list) and all(isinstance(extent, int) for extent in shape)
    return plain and entry.get("datatype") != "BYTES"

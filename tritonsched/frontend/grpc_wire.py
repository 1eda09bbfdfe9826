"""ModelInfer messages without protobuf: a walk over the top-level fields, tensors as views.

Rule: only what differs between two calls of a steady client (id, data) is read each time; the
rest of a message is read once by `grpc_codec` and looked up by its bytes. A message laid out like
the last one for its model is compared with it, any other is walked. Whatever is laid out in another
way than every protobuf library writes it is `grpc_codec`'s to read: equal calls, slower.
Source: the protobuf wire format; inference.ModelInferRequest.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from tritonsched.frontend import grpc_codec
from tritonsched.frontend.grpc_codec import Metadata
from tritonsched.frontend.grpc_framing import PREFIX_BYTES, announced_bytes
from tritonsched.frontend.grpc_said import Said, said_by
from tritonsched.tensors import (
    Buffer,
    DeadlineHints,
    InferCall,
    Pieces,
    Tensor,
    Wire,
)

HEADS_MAX = 1024  # messages' heads remembered; one that changes with every call only fills it up
HEAD_BYTES_MAX = 4096  # longer ones are read each time
_ID, _RAW_INPUT = 0x1A, 0x3A  # tag of a field: number << 3 | 2 (length-delimited)
_BEFORE_ID = frozenset({0x0A, 0x12})  # name, version
_HEAD_TAGS = frozenset({0x0A, 0x12, 0x22, 0x2A, 0x32})  # name, version, parameters, inputs, outputs
_EMPTY_RAW = b"\x3a\x00"


class _Odd(Exception):  # never leaves this file
    """The message is not laid out plainly."""


class _Head(NamedTuple):
    """What all messages with these bytes have in common. call: one of them, without its tensors."""

    call: InferCall
    specs: tuple[tuple[str, str, tuple[int, ...]], ...]


class Layout(NamedTuple):
    """A message around its id and its tensors. before: what stands before the id. gaps: what stands
    before each tensor, its tag and length included, and the bytes of that tensor.
    """

    head: _Head
    form: bytes
    before: bytes
    gaps: tuple[tuple[bytes, int], ...]


_heads: dict[bytes, _Head] = {}
_layouts: dict[bytes, Layout] = {}


def decode(
    body: bytes,
    metadata: Metadata,
    *,
    received_ns: int,
    remaining_ns: int | None,
    start: int = 0,
) -> InferCall:
    """As `grpc_codec.decode`. start: where in the body the message begins."""
    said = said_by(metadata)
    try:
        layout, call_id, raws = _read(body, start, said)
    except (_Odd, IndexError, UnicodeDecodeError):
        return grpc_codec.decode(
            body[start:], metadata, received_ns=received_ns, remaining_ns=remaining_ns
        )
    raw = memoryview(body)[start:] if start else body
    inputs = tuple([Tensor(*spec, d) for spec, d in zip(layout.head.specs, raws)])
    return call_like(
        layout,
        call_id,
        inputs,
        raw=raw,
        metadata=metadata,
        said=said,
        received_ns=received_ns,
        remaining_ns=remaining_ns,
    )


def decode_pieces(
    pieces: Sequence[bytes | bytearray],
    metadata: Metadata,
    *,
    received_ns: int,
    remaining_ns: int | None,
) -> InferCall | None:
    """The same of a body that came in pieces, gRPC's prefix and the message's head in the first
    one, whose tensor is not put together. None if it is to be: it is not laid out like the last one
    of its model, or has other than one tensor of elements of fixed size.
    """
    said = said_by(metadata)
    known = _known(pieces[0], said)
    if known is None:
        return None
    layout, call_id, position = known
    gap, tensor_bytes = layout.gaps[0]
    position += len(gap)
    size = sum(map(len, pieces))
    first = pieces[0]
    is_like = (
        len(layout.gaps) == 1
        and layout.head.specs[0][1] != "BYTES"  # its elements are walked
        and announced_bytes(first) == size == position + tensor_bytes
        and first.startswith(gap, position - len(gap))
    )
    if not is_like:
        return None
    view, rest = memoryview(first), pieces[1:]
    raw = Pieces((view[PREFIX_BYTES:], *rest), size - PREFIX_BYTES)
    data = Pieces((view[position:], *rest), tensor_bytes)
    return call_like(
        layout,
        call_id,
        (Tensor(*layout.head.specs[0], b"", None, data),),
        raw=raw,
        metadata=metadata,
        said=said,
        received_ns=received_ns,
        remaining_ns=remaining_ns,
    )


def decode_head(
    first: bytes | bytearray, metadata: Metadata, *, received_ns: int, remaining_ns: int | None
) -> InferCall | None:
    """The same of its first piece alone, without the tensors' bytes, for what can be said of a call
    before they have come. None if nothing can.
    """
    said = said_by(metadata)
    known = _known(first, said)
    if known is None:
        return None
    layout, call_id, _ = known
    return call_like(
        layout,
        call_id,
        tuple([Tensor(*spec, b"") for spec in layout.head.specs]),
        raw=b"",
        metadata=metadata,
        said=said,
        received_ns=received_ns,
        remaining_ns=remaining_ns,
    )


def _known(first: bytes | bytearray, said: Said) -> tuple[Layout, str, int] | None:
    """Layout, id, and where that ends, of an uncompressed body that begins like the last one."""
    if said.is_odd or first[:1] != b"\0":
        return None
    try:
        layout = _layouts.get(_key(first, PREFIX_BYTES))
        begun = None if layout is None else _begun(layout, first, PREFIX_BYTES)
    except (_Odd, IndexError, UnicodeDecodeError):
        return None
    return None if layout is None or begun is None else (layout, *begun)


def layout_of(body: bytes, start: int) -> Layout | None:
    """Of the last message with the same model's name."""
    return _layouts.get(_key(body, start))


def call_like(
    layout: Layout,
    call_id: str,
    inputs: tuple[Tensor, ...],
    *,
    raw: Buffer | Pieces,
    metadata: Metadata,
    said: Said,
    received_ns: int,
    remaining_ns: int | None,
) -> InferCall:
    """A call so laid out, with what is its own."""
    like = layout.head.call
    hints = like.hints
    if said.is_timed or remaining_ns is not None:
        hints = DeadlineHints(remaining_ns, said.deadline_ms, hints.timeout_us, said.envoy_ms)
    return InferCall(  # by position: names cost as much again as all else
        Wire.GRPC,
        like.model,
        like.version,
        call_id,
        received_ns,
        raw,
        metadata,
        "",
        inputs,
        like.outputs,
        like.parameters,
        "",
        hints,
        said.slo,
        said.explain,
        layout.form,
        like.output_refs,
        said.reservation,
        said.tenant,
    )


def _read(body: bytes, start: int, said: Said) -> tuple[Layout, str, list[memoryview]]:
    """Compared with the last one of its model, or walked. Raises _Odd, IndexError."""
    if said.is_odd:
        raise _Odd
    key = _key(body, start)
    layout = _layouts.get(key)
    if layout is not None:
        found = _compare(layout, body, start)
        if found is not None:
            return layout, *found
    layout, call_id, raws = _walk(body, start)
    if len(_layouts) >= HEADS_MAX:
        _layouts.clear()
    _layouts[key] = layout
    return layout, call_id, raws


def _key(body: bytes | bytearray, start: int) -> bytes:
    """The first field, if it is the model's name. Raises IndexError."""
    return bytes(body[start : start + 2 + body[start + 1]])


def _begun(layout: Layout, body: bytes | bytearray, position: int) -> tuple[str, int] | None:
    """Its id and where that ends, if the message begins this way."""
    if not body.startswith(layout.before, position):
        return None
    position += len(layout.before)
    call_id = ""
    if body[position] == _ID:
        size = body[position + 1]
        position += 2
        if size > 0x7F:  # a length of two bytes
            return None
        call_id = _text(body[position : position + size])
        position += size
    return call_id, position


def _compare(layout: Layout, body: bytes, position: int) -> tuple[str, list[memoryview]] | None:
    """Its id and tensors, if the message is laid out this way."""
    begun = _begun(layout, body, position)
    if begun is None:
        return None
    call_id, position = begun
    view = memoryview(body)
    raws = []
    for gap, size in layout.gaps:
        if not body.startswith(gap, position):
            return None
        position += len(gap) + size
        raws.append(view[position - size : position])
    return (call_id, raws) if position == len(body) else None


def _walk(body: bytes, start: int) -> tuple[Layout, str, list[memoryview]]:
    """The layout, the id, and the tensors' bytes, which must come last. Raises _Odd, IndexError."""
    view = memoryview(body)
    raws: list[memoryview] = []
    gaps: list[tuple[bytes, int]] = []
    call_id = ""
    parts: list[bytes] = []
    before: int | None = None  # parts that stand before the id
    position = start
    while position < len(body):
        if len(parts) + len(gaps) > grpc_codec.TENSORS_MAX:
            raise _Odd
        tag = body[position]
        length, begin = _length(body, position + 1)
        end = begin + length
        if end > len(body):
            raise _Odd
        if tag == _RAW_INPUT:
            raws.append(view[begin:end])
            gaps.append((body[position:begin], length))
        elif raws or (tag == _ID and before is not None):
            raise _Odd
        elif tag == _ID:
            call_id = _text(body[begin:end])
            before = len(parts)
        elif tag in _HEAD_TAGS:
            parts.append(body[position:end])
        else:
            raise _Odd
        position = end
    return _layout(parts, before, gaps), call_id, raws


def _layout(parts: list[bytes], before: int | None, gaps: list[tuple[bytes, int]]) -> Layout:
    """Raises _Odd if such messages are not to be read this way."""
    key = b"".join(parts)
    if len(key) > HEAD_BYTES_MAX:
        raise _Odd
    head = _heads.get(key) or _remember(key, len(gaps))
    if len(gaps) != len(head.specs):
        raise _Odd
    if before is None:  # where a library would write it: after name and version
        before = sum(part[0] in _BEFORE_ID for part in parts)
    first, *others = gaps
    after = b"".join((*parts[before:], first[0]))
    form = b"".join((b"\0", key, *[gap for gap, _ in gaps]))  # no head over HTTP begins so
    return Layout(head, form, b"".join(parts[:before]), ((after, first[1]), *others))


def _text(data: bytes | bytearray) -> str:
    """Raises _Odd for a NUL, at which Triton cuts an id."""
    if 0 in data:
        raise _Odd
    return data.decode()


def _length(message: bytes, position: int) -> tuple[int, int]:
    """A varint and the position after it. Raises IndexError past the end."""
    value = message[position]
    position += 1
    if value < 0x80:  # the last byte of a varint has no top bit
        return value, position
    value &= 0x7F
    shift = 7
    while shift < 35:  # lengths are below 2^32
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _Odd


def _remember(key: bytes, raws: int) -> _Head:
    """Have the head read, with empty tensors, by the careful way. Raises _Odd if it is odd."""
    call = grpc_codec.decode(key + _EMPTY_RAW * raws, (), received_ns=0, remaining_ns=None)
    if call.lone_reason or not call.inputs or any(t != _plain(t) for t in call.inputs):
        raise _Odd
    specs = tuple([(t.name, t.datatype, t.shape) for t in call.inputs])
    head = _Head(replace(call, raw=b"", inputs=()), specs)
    if len(_heads) >= HEADS_MAX:
        _heads.clear()
    _heads[key] = head
    return head


def _plain(tensor: Tensor) -> Tensor:
    """The same as sent in the message itself; one in shared memory is not."""
    return Tensor(tensor.name, tensor.datatype, tensor.shape, b"")

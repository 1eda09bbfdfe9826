"""ModelInfer messages without protobuf: a walk over the top-level fields, tensors as views.

Rule: only what differs between two calls of a steady client (id, data) is read each time; the
rest of a message is read once by `grpc_codec` and looked up by its bytes. A message laid out like
the last one for its model is compared with it, any other is walked. Whatever is laid out in another
way than every protobuf library writes it is `grpc_codec`'s to read: equal calls, slower.
Source: the protobuf wire format; inference.ModelInferRequest and ModelInferResponse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from tritonsched.frontend import grpc_codec
from tritonsched.frontend.grpc_codec import Metadata
from tritonsched.frontend.grpc_framing import PREFIX_BYTES, announced_bytes
from tritonsched.tensors import (
    Buffer,
    DeadlineHints,
    InferCall,
    MergedReply,
    Pieces,
    Tensor,
    Wire,
)

HEADS_MAX = 1024  # messages' heads remembered; one that changes with every call only fills it up
HEAD_BYTES_MAX = 4096  # longer ones are read each time
RESPONSE_HEADS_MAX = 1024
_ID, _RAW_INPUT = 0x1A, 0x3A  # tag of a field: number << 3 | 2 (length-delimited)
_BEFORE_ID = frozenset({0x0A, 0x12})  # name, version
_HEAD_TAGS = frozenset({0x0A, 0x12, 0x22, 0x2A, 0x32})  # name, version, parameters, inputs, outputs
_EMPTY_RAW = b"\x3a\x00"
_LOAD_METRICS = "endpoint-load-metrics-format"  # such a call goes alone
_VARIABLE = {
    "id", "received_ns", "raw", "headers", "inputs", "hints", "slo", "explain", "form",
    "reservation", "tenant",
}  # fmt: skip
_FIXED = tuple(field.name for field in fields(InferCall) if field.name not in _VARIABLE)


class _Odd(Exception):  # never leaves this file
    """The message is not laid out plainly."""


class _Head(NamedTuple):
    """What all messages with these bytes have in common. fixed: fields of InferCall."""

    fixed: dict[str, Any]
    specs: tuple[tuple[str, str, tuple[int, ...]], ...]
    hints: DeadlineHints


class _Layout(NamedTuple):
    """A message around its id and its tensors. before: what stands before the id. gaps: what stands
    before each tensor, its tag and length included, and the bytes of that tensor.
    """

    head: _Head
    form: bytes
    before: bytes
    gaps: tuple[tuple[bytes, int], ...]


_heads: dict[bytes, _Head] = {}
_layouts: dict[bytes, _Layout] = {}
_response_heads: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
_raw_tags: dict[int, bytes] = {}
_NO_TEXTS: dict[str, str] = {}


def decode(
    body: bytes,
    metadata: Metadata,
    *,
    received_ns: int,
    remaining_ns: int | None,
    start: int = 0,
) -> InferCall:
    """As `grpc_codec.decode`. start: where in the body the message begins."""
    texts = _texts(metadata)
    try:
        layout, call_id, raws = _read(body, start, texts)
    except (_Odd, IndexError, UnicodeDecodeError):
        return grpc_codec.decode(
            body[start:], metadata, received_ns=received_ns, remaining_ns=remaining_ns
        )
    raw = memoryview(body)[start:] if start else body
    inputs = tuple([Tensor(*spec, d) for spec, d in zip(layout.head.specs, raws, strict=True)])
    hints = _hints(layout.head.hints, texts, remaining_ns)
    return _call(
        layout,
        call_id,
        inputs,
        raw=raw,
        metadata=metadata,
        texts=texts,
        hints=hints,
        received_ns=received_ns,
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
    first = pieces[0]
    size = sum(map(len, pieces))
    texts = _texts(metadata)
    if first[:1] != b"\0" or announced_bytes(first) != size or _LOAD_METRICS in texts:
        return None
    try:
        layout = _layouts.get(_key(first, PREFIX_BYTES))
        begun = None if layout is None else _begun(layout, first, PREFIX_BYTES)
    except (_Odd, IndexError, UnicodeDecodeError):
        return None
    if layout is None or begun is None or len(layout.gaps) != 1:
        return None
    if layout.head.specs[0][1] == "BYTES":  # its elements are walked
        return None
    call_id, position = begun
    gap, tensor_bytes = layout.gaps[0]
    position += len(gap)
    if not first.startswith(gap, position - len(gap)) or position + tensor_bytes != size:
        return None
    view, rest = memoryview(first), pieces[1:]
    raw = Pieces((view[PREFIX_BYTES:], *rest), size - PREFIX_BYTES)
    data = Pieces((view[position:], *rest), tensor_bytes)
    inputs = (Tensor(*layout.head.specs[0], b"", None, data),)
    hints = _hints(layout.head.hints, texts, remaining_ns)
    return _call(
        layout,
        call_id,
        inputs,
        raw=raw,
        metadata=metadata,
        texts=texts,
        hints=hints,
        received_ns=received_ns,
    )


def _texts(metadata: Metadata) -> Mapping[str, str]:
    if not metadata:
        return _NO_TEXTS
    return {key: value for key, value in metadata if isinstance(value, str)}


def _call(
    layout: _Layout,
    call_id: str,
    inputs: tuple[Tensor, ...],
    *,
    raw: Buffer | Pieces,
    metadata: Metadata,
    texts: Mapping[str, str],
    hints: DeadlineHints,
    received_ns: int,
) -> InferCall:
    head = layout.head
    return InferCall(
        **head.fixed,
        id=call_id,
        received_ns=received_ns,
        raw=raw,
        headers=metadata,
        inputs=inputs,
        hints=hints,
        slo=texts.get("x-tritonsched-class"),
        explain=texts.get("x-tritonsched-explain") == "1",
        form=layout.form,
        reservation=texts.get("x-tritonsched-reservation"),
        tenant=texts.get("x-tritonsched-tenant"),
    )


def _hints(
    plain: DeadlineHints, texts: Mapping[str, str], remaining_ns: int | None
) -> DeadlineHints:
    if remaining_ns is None and not texts:
        return plain
    return DeadlineHints(
        remaining_ns,
        texts.get("x-request-deadline-ms"),
        plain.timeout_us,
        texts.get("x-envoy-expected-rq-timeout-ms"),
    )


def _read(
    body: bytes, start: int, texts: Mapping[str, str]
) -> tuple[_Layout, str, list[memoryview]]:
    """Compared with the last one of its model, or walked. Raises _Odd, IndexError."""
    if _LOAD_METRICS in texts:
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


def _begun(layout: _Layout, body: bytes | bytearray, position: int) -> tuple[str, int] | None:
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


def _compare(layout: _Layout, body: bytes, position: int) -> tuple[str, list[memoryview]] | None:
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


def _walk(body: bytes, start: int) -> tuple[_Layout, str, list[memoryview]]:
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


def _layout(parts: list[bytes], before: int | None, gaps: list[tuple[bytes, int]]) -> _Layout:
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
    return _Layout(head, form, b"".join(parts[:before]), ((after, first[1]), *others))


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
    head = _Head(
        {name: getattr(call, name) for name in _FIXED},
        tuple([(t.name, t.datatype, t.shape) for t in call.inputs]),
        call.hints,
    )
    if len(_heads) >= HEADS_MAX:
        _heads.clear()
    _heads[key] = head
    return head


def _plain(tensor: Tensor) -> Tensor:
    """The same as sent in the message itself; one in shared memory is not."""
    return Tensor(tensor.name, tensor.datatype, tensor.shape, b"")


def encode(reply: MergedReply, call: InferCall) -> bytes:
    """As `grpc_codec.encode`, byte for byte."""
    return b"".join(_parts(reply, call))


def encode_framed(reply: MergedReply, call: InferCall) -> bytes:
    """The same with gRPC's prefix before it, and its tensors copied once for both."""
    parts = _parts(reply, call)
    size = sum(map(len, parts))
    return b"".join((b"\0", size.to_bytes(4, "big"), *parts))


def _parts(reply: MergedReply, call: InferCall) -> list[Buffer]:
    outputs = reply.outputs
    named = (reply.model, reply.version, reply.variant)
    key = (*named, *[(t.name, t.datatype, t.shape) for t in outputs])
    before, after = _response_heads.get(key) or _remember_response(key, reply)
    parts: list[Buffer] = [before]
    if call.id:
        raw_id = call.id.encode()
        parts += (b"\x1a", _varint(len(raw_id)), raw_id)
    parts.append(after)
    for tensor in outputs:
        size = len(tensor.data)
        parts += (_raw_tags.get(size) or _raw_tag(size), tensor.data)
    return parts


def _raw_tag(size: int) -> bytes:
    """What stands before a tensor of that size in an answer."""
    if len(_raw_tags) >= RESPONSE_HEADS_MAX:
        _raw_tags.clear()
    made = _raw_tags[size] = b"\x32" + _varint(size)
    return made


def _remember_response(key: tuple[Any, ...], reply: MergedReply) -> tuple[bytes, bytes]:
    """What stands before the id, and what between it and the tensors."""
    empty = [Tensor(t.name, t.datatype, t.shape, b"") for t in reply.outputs]
    call = InferCall(wire=Wire.GRPC, model="", version="", id="", received_ns=0, raw=b"")
    before = grpc_codec.encode(MergedReply(reply.model, reply.version, ()), call)
    answer = MergedReply(reply.model, reply.version, tuple(empty), variant=reply.variant)
    whole = grpc_codec.encode(answer, call)
    tail = len(empty) * 2  # each raw output is a tag and a length of 0
    if len(_response_heads) >= RESPONSE_HEADS_MAX:
        _response_heads.clear()
    known = _response_heads[key] = (before, whole[len(before) : len(whole) - tail])
    return known


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:  # seven bits a byte
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)

"""ModelInfer messages without protobuf: a walk over the top-level fields, tensors as views.

Rule: only what differs between two calls of a steady client (id, data) is read each time; the
rest of a message is read once by `grpc_codec` and looked up by its bytes. Whatever is laid out in
another way than every protobuf library writes it is `grpc_codec`'s to read: equal calls, slower.
Source: the protobuf wire format; inference.ModelInferRequest and ModelInferResponse.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from tritonsched.frontend import grpc_codec
from tritonsched.frontend.grpc_codec import Metadata
from tritonsched.tensors import Buffer, DeadlineHints, InferCall, MergedReply, Tensor, Wire

HEADS_MAX = 1024  # messages' heads remembered; one that changes with every call only fills it up
HEAD_BYTES_MAX = 4096  # longer ones are read each time
RESPONSE_HEADS_MAX = 1024
_ID, _RAW_INPUT = 0x1A, 0x3A  # tag of a field: number << 3 | 2 (length-delimited)
_HEAD_TAGS = frozenset({0x0A, 0x12, 0x22, 0x2A, 0x32})  # name, version, parameters, inputs, outputs
_RAW_OUTPUT = 0x32
_EMPTY_RAW = b"\x3a\x00"
_FAST_HEADER = "endpoint-load-metrics-format"  # such a call goes alone
_VARIABLE = {"id", "received_ns", "raw", "headers", "inputs", "hints", "slo", "explain", "form"}
_FIXED = tuple(field.name for field in fields(InferCall) if field.name not in _VARIABLE)


class _Odd(Exception):  # never leaves this file
    """The message is not laid out plainly."""


class _Head(NamedTuple):
    """What all messages with these bytes have in common. fixed: fields of InferCall."""

    fixed: dict[str, Any]
    specs: tuple[tuple[str, str, tuple[int, ...]], ...]
    timeout_us: int | None


_heads: dict[bytes, _Head] = {}
_response_heads: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}


def decode(
    message: bytes, metadata: Metadata, *, received_ns: int, remaining_ns: int | None
) -> InferCall:
    """As `grpc_codec.decode`."""
    texts = {key: value for key, value in metadata if isinstance(value, str)}
    try:
        key, call_id, raws = _walk(message)
        head = _head(key, len(raws), texts)
    except (_Odd, IndexError, UnicodeDecodeError):
        return grpc_codec.decode(
            message, metadata, received_ns=received_ns, remaining_ns=remaining_ns
        )
    inputs = [Tensor(*spec, raw) for spec, raw in zip(head.specs, raws, strict=True)]
    return InferCall(
        **head.fixed,
        id=call_id,
        received_ns=received_ns,
        raw=message,
        headers=metadata,
        inputs=tuple(inputs),
        hints=DeadlineHints(
            remaining_ns,
            texts.get("x-request-deadline-ms"),
            head.timeout_us,
            texts.get("x-envoy-expected-rq-timeout-ms"),
        ),
        slo=texts.get("x-tritonsched-class"),
        explain=texts.get("x-tritonsched-explain") == "1",
        form=key + b",".join([b"%d" % len(raw) for raw in raws]),
    )


def _head(key: bytes, raws: int, texts: Mapping[str, str]) -> _Head:
    head = _heads.get(key) or _remember(key, raws)
    if raws != len(head.specs) or _FAST_HEADER in texts:
        raise _Odd
    return head


def _walk(message: bytes) -> tuple[bytes, str, list[memoryview]]:
    """The head without its id, the id, and the tensors' bytes, which must come last."""
    view = memoryview(message)
    size = len(message)
    raws: list[memoryview] = []
    call_id = ""
    parts: list[bytes] = []
    position = 0
    while position < size:
        tag = message[position]
        length, start = _length(message, position + 1)
        end = start + length
        if end > size:
            raise _Odd
        if tag == _RAW_INPUT:
            raws.append(view[start:end])
        elif raws:
            raise _Odd
        elif tag == _ID:
            call_id = _text(message[start:end])
        elif tag in _HEAD_TAGS:
            parts.append(message[position:end])
        else:
            raise _Odd
        position = end
    key = b"".join(parts)
    if len(key) > HEAD_BYTES_MAX:
        raise _Odd
    return key, call_id, raws


def _text(data: bytes) -> str:
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
        call.hints.timeout_us,
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
    outputs = reply.outputs
    key = (reply.model, reply.version, *[(t.name, t.datatype, t.shape) for t in outputs])
    known = _response_heads.get(key)
    if known is None:
        known = _remember_response(key, reply)
    parts: list[Buffer] = [known[0]]
    if call.id:
        raw_id = call.id.encode()
        parts += (b"\x1a", _varint(len(raw_id)), raw_id)
    parts.append(known[1])
    for tensor in outputs:
        parts += (b"\x32", _varint(len(tensor.data)), tensor.data)
    return b"".join(parts)


def _remember_response(key: tuple[Any, ...], reply: MergedReply) -> tuple[bytes, bytes]:
    """What stands before the id, and what between it and the tensors."""
    empty = [Tensor(t.name, t.datatype, t.shape, b"") for t in reply.outputs]
    call = InferCall(wire=Wire.GRPC, model="", version="", id="", received_ns=0, raw=b"")
    before = grpc_codec.encode(MergedReply(reply.model, reply.version, ()), call)
    whole = grpc_codec.encode(MergedReply(reply.model, reply.version, tuple(empty)), call)
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

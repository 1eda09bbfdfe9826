"""Answers of ModelInfer without protobuf. Rule: only the id and the tensors' bytes are written each
time; what stands around them is made once by `grpc_codec` for answers of the same form.

Source: the protobuf wire format; inference.ModelInferResponse.
"""

from typing import Any, NamedTuple

from tritonsched.frontend import grpc_codec
from tritonsched.frontend.grpc_framing import PREFIX_BYTES
from tritonsched.tensors import Buffer, InferCall, MergedReply, Tensor, Wire

RESPONSE_HEADS_MAX = 1024


class _Form(NamedTuple):
    """An answer with gRPC's prefix before it, around its id and its tensors. start: what stands
    before the id. gaps: what stands before each tensor. end: what follows the id if there are none.
    """

    start: bytes
    gaps: tuple[bytes, ...]
    end: bytes


_heads: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
_forms: dict[tuple[Any, ...], _Form] = {}


def encode(reply: MergedReply, call: InferCall) -> bytes:
    """As `grpc_codec.encode`, byte for byte."""
    return encode_framed(reply, call)[PREFIX_BYTES:]


def encode_framed(reply: MergedReply, call: InferCall) -> bytes:
    """The same with gRPC's prefix before it, and its tensors copied once for both."""
    raw_id = call.id.encode()
    outputs = reply.outputs
    tensors = [(t.name, t.datatype, t.shape, len(t.data)) for t in outputs]
    key = (reply.model, reply.version, reply.variant, len(raw_id), *tensors)
    start, gaps, end = _forms.get(key) or _remember_form(key, reply, len(raw_id))
    parts: list[Buffer] = [start, raw_id, end]
    for gap, tensor in zip(gaps, outputs):
        parts += (gap, tensor.data)
    return b"".join(parts)


def _remember_form(key: tuple[Any, ...], reply: MergedReply, id_size: int) -> _Form:
    outputs = reply.outputs
    named = (reply.model, reply.version, reply.variant)
    head = (*named, *[(t.name, t.datatype, t.shape) for t in outputs])
    before, after = _heads.get(head) or _remember_response(head, reply)
    if id_size:
        before += b"\x1a" + _varint(id_size)
    gaps = [b"\x32" + _varint(len(tensor.data)) for tensor in outputs]
    end = after
    if gaps:
        gaps[0], end = after + gaps[0], b""
    size = len(before) + id_size + sum(map(len, (*gaps, end))) + sum(len(t.data) for t in outputs)
    if len(_forms) >= RESPONSE_HEADS_MAX:
        _forms.clear()
    form = _Form(b"\0" + size.to_bytes(4, "big") + before, tuple(gaps), end)
    _forms[key] = form
    return form


def _remember_response(key: tuple[Any, ...], reply: MergedReply) -> tuple[bytes, bytes]:
    """What stands before the id, and what between it and the tensors."""
    empty = [Tensor(t.name, t.datatype, t.shape, b"") for t in reply.outputs]
    call = InferCall(wire=Wire.GRPC, model="", version="", id="", received_ns=0, raw=b"")
    before = grpc_codec.encode(MergedReply(reply.model, reply.version, ()), call)
    answer = MergedReply(reply.model, reply.version, tuple(empty), variant=reply.variant)
    whole = grpc_codec.encode(answer, call)
    tail = len(empty) * 2  # each raw output is a tag and a length of 0
    if len(_heads) >= RESPONSE_HEADS_MAX:
        _heads.clear()
    known = _heads[key] = (before, whole[len(before) : len(whole) - tail])
    return known


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:  # seven bits a byte
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)

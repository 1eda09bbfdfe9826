"""Answers of ModelInfer without protobuf. Rule: only the id and the tensors' bytes are written each
time; what stands around them is made once by `grpc_codec` for answers of the same form.

Source: the protobuf wire format; inference.ModelInferResponse.
"""

from typing import Any

from tritonsched.frontend import grpc_codec
from tritonsched.tensors import Buffer, InferCall, MergedReply, Tensor, Wire

RESPONSE_HEADS_MAX = 1024
_heads: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
_raw_tags: dict[int, bytes] = {}


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
    before, after = _heads.get(key) or _remember_response(key, reply)
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

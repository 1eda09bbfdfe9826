"""Whole bodies of ModelInfer, compared with one before. Rule: only a body that is the same to the
byte, but for its id and its tensors, is read here; any other is `grpc_wire`'s to read.

A steady client's bodies of one form are of one size, so what stands around the id and the tensors
is compared in one piece each, gRPC's prefix included.
"""

from typing import NamedTuple

from tritonsched.frontend import grpc_wire
from tritonsched.frontend.grpc_codec import Metadata
from tritonsched.frontend.grpc_framing import PREFIX_BYTES
from tritonsched.frontend.grpc_said import said_by
from tritonsched.tensors import InferCall, Tensor

BODIES_MAX = 1024  # remembered
_FIRST_AT = PREFIX_BYTES + 2  # where the content of the first field begins


class _Place(NamedTuple):
    """A tensor in its body. gap: what stands before it, from gap_at on; it ends at `end`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    gap: bytes
    gap_at: int
    begin: int
    end: int


class _Body(NamedTuple):
    """start: what stands before the id, which is empty if it ends where it begins."""

    layout: grpc_wire.Layout
    start: bytes
    id_at: int
    id_end: int
    places: tuple[_Place, ...]


_bodies: dict[tuple[int, bytes], _Body] = {}


def _key(body: bytes) -> tuple[int, bytes]:
    """Its size, and all up to the end of the model's name."""
    return len(body), body[: _FIRST_AT + body[_FIRST_AT - 1]]


def decode_known(
    body: bytes, metadata: Metadata, *, received_ns: int, remaining_ns: int | None
) -> InferCall | None:
    """As `grpc_wire.decode`, of a message and its prefix; None if there was none like it."""
    if len(body) < _FIRST_AT:
        return None
    known = _bodies.get(_key(body))
    if known is None:
        return None
    layout, start, id_at, id_end, places = known
    said = said_by(metadata)
    raw_id = body[id_at:id_end]
    if said.is_odd or 0 in raw_id or not body.startswith(start):
        return None
    view = memoryview(body)
    inputs = []
    for name, datatype, shape, gap, gap_at, begin, end in places:
        if not body.startswith(gap, gap_at):
            return None
        inputs.append(Tensor(name, datatype, shape, view[begin:end]))
    try:
        call_id = raw_id.decode()
    except UnicodeDecodeError:
        return None
    return grpc_wire.call_like(
        layout,
        call_id,
        tuple(inputs),
        raw=view[PREFIX_BYTES:],
        metadata=metadata,
        said=said,
        received_ns=received_ns,
        remaining_ns=remaining_ns,
    )


def decode(
    body: bytes, metadata: Metadata, *, received_ns: int, remaining_ns: int | None
) -> InferCall:
    """As `grpc_wire.decode`, of an uncompressed message and its prefix, and nothing else."""
    made = grpc_wire.decode(
        body, metadata, received_ns=received_ns, remaining_ns=remaining_ns, start=PREFIX_BYTES
    )
    if made.form is not None:
        layout = grpc_wire.layout_of(body, PREFIX_BYTES)
        assert layout is not None
        if layout.form == made.form:
            _remember(body, layout, made)
    return made


def _remember(body: bytes, layout: grpc_wire.Layout, made: InferCall) -> None:
    """Tensors come last, so all places are known from the end."""
    places = []
    end = len(body)
    for tensor, (gap, size) in zip(made.inputs[::-1], layout.gaps[::-1], strict=True):
        gap_at, begin = end - size - len(gap), end - size
        places.append(_Place(tensor.name, tensor.datatype, tensor.shape, gap, gap_at, begin, end))
        end = gap_at
    id_at = end - len(made.id.encode())
    if len(_bodies) >= BODIES_MAX:
        _bodies.clear()
    _bodies[_key(body)] = _Body(layout, body[:id_at], id_at, end, tuple(places[::-1]))

"""Wire-neutral nouns: what a call carries and what an answer is. Rule: views, not copies.

Frontends make an InferCall from bytes and bytes from an answer; the backend sees a BatchCall
(backend/batch_call.py). What is made for each request has its `__init__` written out: in a compiled
build a dataclass' own stays interpreted (DESIGN.md 44).
Nothing here knows HTTP, protobuf or asyncio. Tensor data is row-major as the KServe v2 protocol
has it; BYTES tensors are 4-byte little-endian length + bytes, element after element.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from tritonsched.errors import TritonschedError, TritonUnavailable

Buffer = bytes | bytearray | memoryview


class Pieces:
    """Bytes that lie in the pieces in which they came, one after the other; not put together, for
    that is a copy. size_bytes: of all of them.
    """

    __slots__ = ("parts", "size_bytes")

    def __init__(self, parts: tuple[Buffer, ...], size_bytes: int) -> None:
        self.parts = parts
        self.size_bytes = size_bytes

    def __len__(self) -> int:
        return self.size_bytes

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


ParameterValue = bool | int | float | str

ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8,
        "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
        "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
    }
)  # fmt: skip
"""Bytes of one element by datatype; BYTES has no fixed size and is absent."""


class Wire(StrEnum):
    """The protocol a client speaks."""

    HTTP = "http"
    GRPC = "grpc"


def byte_size(datatype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a dense tensor; None for a datatype without a fixed element size.

    Python's integers do not overflow, so a product beyond 2^63 is simply a size nothing matches.
    """
    item = ITEM_BYTES.get(datatype)
    if item is None:
        return None
    for extent in shape:
        item *= extent
    return item


@dataclass(frozen=True, slots=True)
class ShmRef:
    """A place in a shared-memory region that a client has registered.

    region: its name in Triton. offset, byte_size: bytes, from the region's beginning.
    """

    region: str
    offset: int
    byte_size: int


@dataclass(slots=True)  # not frozen: that triples the cost of making one
class Tensor:
    """A named tensor. shape includes the batch dimension; data holds exactly its bytes.

    ref: an input that is to be read there, or an output that was written there; data is empty.
    pieces: a large input's bytes, of a type of fixed size, as they came; data is empty.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer
    ref: ShmRef | None = None
    pieces: Pieces | None = None

    def __init__(  # noqa: PLR0917
        self,
        name: str,
        datatype: str,
        shape: tuple[int, ...],
        data: Buffer,
        ref: ShmRef | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data
        self.ref = ref
        self.pieces = pieces

    @property
    def byte_size(self) -> int:
        """Of its bytes, wherever they are."""
        if self.ref is not None:
            return self.ref.byte_size
        return len(self.data) if self.pieces is None else self.pieces.size_bytes


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that triples the cost of making one
class DeadlineHints:
    """What the client said about time, as received; None where it said nothing.

    grpc_remaining_ns: from `grpc-timeout`. header_ms: `x-request-deadline-ms`, as text.
    timeout_us: the v2 parameter `timeout`. envoy_ms: `x-envoy-expected-rq-timeout-ms`, as text.
    Their order of precedence is intake's business (DESIGN.md, "Deadlines").
    """

    grpc_remaining_ns: int | None = None
    header_ms: str | None = None
    timeout_us: int | None = None
    envoy_ms: str | None = None

    def __init__(
        self,
        grpc_remaining_ns: int | None = None,
        header_ms: str | None = None,
        timeout_us: int | None = None,
        envoy_ms: str | None = None,
    ) -> None:
        self.grpc_remaining_ns = grpc_remaining_ns
        self.header_ms = header_ms
        self.timeout_us = timeout_us
        self.envoy_ms = envoy_ms


_NO_HINTS = DeadlineHints()
_NO_PARAMETERS: Mapping[str, ParameterValue] = MappingProxyType({})


@dataclass(slots=True)  # not frozen: that triples the cost of making one
class InferCall:
    """One inference call, decoded as far as merging needs and with its original bytes beside it.

    received_ns: monotonic time of the first byte of its headers, as near as the server can tell.
    raw: the whole body (HTTP, undecoded) or message (gRPC), to be sent on unchanged when alone.
    headers: end-to-end headers or metadata, in order, to be sent on with `raw`.
    path: HTTP only: the raw path with query.
    lone_reason: why the *form* of the call rules merging out; empty if it does not. Then `inputs`,
      `outputs` and `parameters` are complete. Otherwise they hold what could be read, maybe
      nothing.
    parameters: typed request parameters other than `timeout`; `True`, `1`, `1.0` and "1" differ.
    outputs: requested outputs by name, in order; empty means all the model has. output_refs: those
      of them that are to be written into a client's region, with the place.
    slo: value of `x-tritonsched-class`; None if absent. explain: `x-tritonsched-explain: 1` was
    sent. reservation, tenant: values of `x-tritonsched-reservation` and `-tenant`.
    """

    wire: Wire
    model: str
    version: str
    id: str
    received_ns: int
    raw: Buffer | Pieces
    headers: tuple[tuple[str, str | bytes], ...] = ()
    path: str = ""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, ParameterValue] = field(default_factory=lambda: _NO_PARAMETERS)
    lone_reason: str = ""
    hints: DeadlineHints = _NO_HINTS
    slo: str | None = None
    explain: bool = False
    form: bytes | None = None  # equal heads: calls that differ in data and deadline alone
    output_refs: tuple[tuple[str, ShmRef], ...] = ()
    reservation: str | None = None
    tenant: str | None = None
    server: str = ""  # which of several is to answer it; empty: any

    def __init__(  # noqa: PLR0917
        self,
        wire: Wire,
        model: str,
        version: str,
        id: str,  # noqa: A002
        received_ns: int,
        raw: Buffer | Pieces,
        headers: tuple[tuple[str, str | bytes], ...] = (),
        path: str = "",
        inputs: tuple[Tensor, ...] = (),
        outputs: tuple[str, ...] = (),
        parameters: Mapping[str, ParameterValue] = _NO_PARAMETERS,
        lone_reason: str = "",
        hints: DeadlineHints = _NO_HINTS,
        slo: str | None = None,
        explain: bool = False,
        form: bytes | None = None,
        output_refs: tuple[tuple[str, ShmRef], ...] = (),
        reservation: str | None = None,
        tenant: str | None = None,
        server: str = "",
    ) -> None:
        self.wire = wire
        self.model = model
        self.version = version
        self.id = id
        self.received_ns = received_ns
        self.raw = raw
        self.headers = headers
        self.path = path
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
        self.lone_reason = lone_reason
        self.hints = hints
        self.slo = slo
        self.explain = explain
        self.form = form
        self.output_refs = output_refs
        self.reservation = reservation
        self.tenant = tenant
        self.server = server

    @property
    def refs(self) -> tuple[ShmRef, ...]:
        """Every place in a client's region that the call names, as far as its form was read."""
        inputs = [tensor.ref for tensor in self.inputs if tensor.ref is not None]
        return (*inputs, *[ref for _, ref in self.output_refs])


@dataclass(frozen=True, slots=True)
class Explain:
    """Why an answer came when it did; sent on request (`x-tritonsched-explain: 1`).

    queue_ns: arrival to dispatch. batch_rows, batch_requests: what it ran with. variant: the Triton
    model that served it. slack_ns: deadline minus completion, None without a deadline. lone: why it
    was not merged, empty if it might have been. clipped: the client asked for a later deadline than
    its class allows.
    """

    queue_ns: int
    batch_rows: int
    batch_requests: int
    variant: str
    slack_ns: int | None
    lone: str = ""
    clipped: bool = False

    def header_value(self) -> str:
        """`key=value` pairs separated by "; ", times in milliseconds; the same on both wires."""
        slack = "none" if self.slack_ns is None else f"{self.slack_ns / 1e6:.3f}"
        text = (
            f"queue_ms={self.queue_ns / 1e6:.3f}; batch_rows={self.batch_rows}; "
            f"batch_requests={self.batch_requests}; variant={self.variant}; slack_ms={slack}"
        )
        if self.lone:
            text += f"; lone={self.lone}"
        return text + ("; deadline=clipped" if self.clipped else "")


@dataclass(slots=True)  # not frozen: that triples the cost of making one
class MergedReply:
    """The client's share of a merged answer; the frontend encodes it with the client's own id.

    outputs: in the model's order, shape[0] = the request's rows, data owned by this reply.
    variant: the Triton model that served it, if the client asked for a model with variants.
    """

    model: str
    version: str
    outputs: tuple[Tensor, ...]
    explain: Explain | None = None
    variant: str = ""

    def __init__(
        self,
        model: str,
        version: str,
        outputs: tuple[Tensor, ...],
        explain: Explain | None = None,
        variant: str = "",
    ) -> None:
        self.model = model
        self.version = version
        self.outputs = outputs
        self.explain = explain
        self.variant = variant


@dataclass(slots=True)  # not frozen: that triples the cost of making one
class HttpReply:
    """Triton's HTTP answer as it came. headers: end-to-end ones, in order."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: Buffer
    explain: Explain | None = None

    def __init__(
        self,
        status: int,
        reason: str,
        headers: tuple[tuple[str, str], ...],
        body: Buffer,
        explain: Explain | None = None,
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body
        self.explain = explain


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that triples the cost of making one
class GrpcReply:
    """Triton's gRPC answer as it came. code: the status' name, "OK" if it worked."""

    code: str
    details: str
    message: Buffer
    initial_metadata: tuple[tuple[str, str | bytes], ...] = ()
    trailing_metadata: tuple[tuple[str, str | bytes], ...] = ()
    explain: Explain | None = None

    def __init__(  # noqa: PLR0917
        self,
        code: str,
        details: str,
        message: Buffer,
        initial_metadata: tuple[tuple[str, str | bytes], ...] = (),
        trailing_metadata: tuple[tuple[str, str | bytes], ...] = (),
        explain: Explain | None = None,
    ) -> None:
        self.code = code
        self.details = details
        self.message = message
        self.initial_metadata = initial_metadata
        self.trailing_metadata = trailing_metadata
        self.explain = explain


RawReply = HttpReply | GrpcReply
Answer = MergedReply | HttpReply | GrpcReply
Send = Callable[[int], Awaitable[RawReply]]
"""Does a call when it is its turn, given how many ns that is expected to take; returns when the
device is free again."""
Done = Callable[[Answer | TritonschedError], None]
"""Hears how a call ended, once: an answer or an error."""
Cancel = Callable[[], object]
"""The caller has left: what it waits for is dropped, and its `Done` hears nothing any more."""


GrpcDone = Callable[[GrpcReply | TritonUnavailable], None]
"""Hears how a raw call ended, once: any status is a reply; an error is that nobody answered."""

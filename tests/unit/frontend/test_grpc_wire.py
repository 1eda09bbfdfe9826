"""The walk over ModelInfer messages: the same calls and answers as protobuf's, only cheaper."""

import zlib
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tritonsched.errors import ClientError, PayloadTooLarge
from tritonsched.frontend import grpc_answers, grpc_codec, grpc_said, grpc_wire
from tritonsched.frontend.grpc_framing import (
    Head,
    announced_bytes,
    framed,
    inflate,
    message_of,
    timeout_of,
)
from tritonsched.tensors import InferCall, MergedReply, Tensor

NAMES = st.text(max_size=6)
RAW = st.binary(max_size=300)
METADATA = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "x-request-deadline-ms",
                "x-tritonsched-class",
                "x-tritonsched-explain",
                "endpoint-load-metrics-format",
                "other",
            ]
        ),
        st.sampled_from(["1", "gold", "text"]),
    ),
    max_size=3,
).map(tuple)


@st.composite
def messages(draw: Any) -> bytes:
    """Requests, plain ones and odd ones."""
    request = pb.ModelInferRequest(
        model_name=draw(NAMES), model_version=draw(st.sampled_from(["", "1"])), id=draw(NAMES)
    )
    for _ in range(draw(st.integers(0, 2))):
        tensor = request.inputs.add(name=draw(NAMES), datatype="UINT8")
        tensor.shape.extend(draw(st.lists(st.integers(0, 300), max_size=3)))
        if draw(st.integers(0, 9)) == 0:
            tensor.contents.int_contents.append(1)
        if draw(st.integers(0, 9)) == 0:
            tensor.parameters["shared_memory_region"].string_param = "r"
    for _ in range(draw(st.integers(0, 2))):
        request.outputs.add(name=draw(NAMES))
    if draw(st.booleans()):
        request.parameters["timeout"].int64_param = draw(st.integers(-1, 9))
    raws = len(request.inputs) if draw(st.integers(0, 4)) else draw(st.integers(0, 3))
    request.raw_input_contents.extend(draw(st.lists(RAW, min_size=raws, max_size=raws)))
    made: bytes = request.SerializeToString()
    return made


def plain(call: InferCall) -> InferCall:
    """Without what is the fast way's own."""
    inputs = tuple(replace(tensor, data=bytes(tensor.data)) for tensor in call.inputs)
    return replace(call, inputs=inputs, form=None, parameters=dict(call.parameters))


def test_a_message_of_a_million_tensors_is_walked_no_further_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    length = grpc_wire._length

    def looked(body: bytes, position: int) -> tuple[int, int]:
        looks.append(position)
        return length(body, position)

    monkeypatch.setattr(grpc_wire, "_length", looked)
    message = b"\x0a\x01m" + b"\x2a\x00" * 1_000_000
    call = grpc_wire.decode(message, (), received_ns=3, remaining_ns=None)
    assert (call.model, call.lone_reason, len(call.raw)) == ("m", "tensor-count", len(message))
    assert len(looks) == grpc_codec.TENSORS_MAX + 1


@given(messages(), METADATA, st.none() | st.integers(0, 9))
def test_a_message_is_the_same_call_either_way(
    message: bytes, metadata: Any, remaining: int | None
) -> None:
    fast = grpc_wire.decode(message, metadata, received_ns=3, remaining_ns=remaining)
    careful = grpc_codec.decode(message, metadata, received_ns=3, remaining_ns=remaining)
    assert plain(fast) == plain(careful)


@given(messages(), messages(), st.binary(max_size=9), st.text(max_size=200))
def test_a_message_like_the_one_before_is_the_same_call_either_way(
    message: bytes, other: bytes, before: bytes, call_id: str
) -> None:
    """Compared instead of walked, wherever in a body it begins."""
    grpc_wire.decode(message, (), received_ns=0, remaining_ns=None)
    changed = pb.ModelInferRequest.FromString(message)
    changed.id = call_id
    for near in (message, changed.SerializeToString(), message[:-1], message + b"\0", other):
        body = before + near
        fast = grpc_wire.decode(body, (), received_ns=0, remaining_ns=None, start=len(before))
        careful = grpc_codec.decode(near, (), received_ns=0, remaining_ns=None)
        assert plain(fast) == plain(careful)


@given(messages(), st.integers(0, 400), st.binary(max_size=3))
def test_a_damaged_message_is_the_same_call_either_way(
    message: bytes, where: int, what: bytes
) -> None:
    damaged = message[:where] + what + message[where + 1 :]
    fast = grpc_wire.decode(damaged, (), received_ns=0, remaining_ns=None)
    careful = grpc_codec.decode(damaged, (), received_ns=0, remaining_ns=None)
    assert plain(fast) == plain(careful)


def test_calls_that_differ_in_id_and_data_share_a_form_and_others_do_not() -> None:
    """The form is what a judgement is remembered under, so it tells lengths apart, too."""
    request = pb.ModelInferRequest(model_name="m", id="1")
    request.inputs.add(name="IN", datatype="UINT8", shape=[1, 2])
    forms = []
    for call_id, raw in (("1", b"ab"), ("2", b"cd"), ("", b"ef"), ("1", b"abc")):
        request.id = call_id
        del request.raw_input_contents[:]
        request.raw_input_contents.append(raw)
        made = grpc_wire.decode(request.SerializeToString(), (), received_ns=0, remaining_ns=None)
        assert (made.id, bytes(made.inputs[0].data)) == (call_id, raw)
        forms.append(made.form)
    assert forms[0] == forms[1] == forms[2]
    assert forms[3] != forms[0]


TENSORS = st.builds(
    Tensor, NAMES, st.just("UINT8"), st.lists(st.integers(0, 300), max_size=3).map(tuple), RAW
)


@given(
    NAMES, NAMES, NAMES, st.sampled_from(("", "lite0")), st.lists(TENSORS, max_size=3).map(tuple)
)
def test_an_answer_has_the_same_bytes_either_way(
    model: str, version: str, call_id: str, variant: str, outputs: tuple[Tensor, ...]
) -> None:
    call = grpc_codec.decode(b"", (), received_ns=0, remaining_ns=None)
    call.id = call_id
    reply = MergedReply(model, version, outputs, variant=variant)
    for _ in range(2):  # made, and remembered
        message = grpc_codec.encode(reply, call)
        assert grpc_answers.encode(reply, call) == message
        assert grpc_answers.encode_framed(reply, call) == framed(message)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_wire, "HEADS_MAX", 4)
    monkeypatch.setattr(grpc_said, "SAID_MAX", 4)
    monkeypatch.setattr(grpc_answers, "RESPONSE_HEADS_MAX", 4)
    kept = (
        (grpc_wire, "_heads"), (grpc_wire, "_layouts"), (grpc_said, "_said"),
        (grpc_answers, "_heads"), (grpc_answers, "_forms"),
    )  # fmt: skip
    for module, name in kept:
        monkeypatch.setattr(module, name, {})
    for number in range(20):
        request = pb.ModelInferRequest(model_name=f"m{number}")
        request.inputs.add(name="IN", datatype="UINT8", shape=[1])
        request.raw_input_contents.append(b"a")
        metadata = (("number", str(number)),)
        message = request.SerializeToString()
        call = grpc_wire.decode(message, metadata, received_ns=0, remaining_ns=None)
        tensor = Tensor("OUT", "UINT8", (number,), bytes(number))
        grpc_answers.encode(MergedReply(call.model, "1", (tensor,)), call)
        assert all(1 <= len(getattr(module, name)) <= 4 for module, name in kept)
    grpc_wire.decode(b"", (("long", "m" * 5000),), received_ns=0, remaining_ns=None)
    assert all("long" not in dict(metadata) for metadata in grpc_said._said)
    long = pb.ModelInferRequest(model_name="m" * 5000).SerializeToString()
    assert grpc_wire.decode(long, (), received_ns=0, remaining_ns=None).form is None


# -- framing ------------------------------------------------------------------------------------


@given(st.binary(max_size=50), st.binary(max_size=9))
def test_a_framed_message_is_cut_out_again(message: bytes, more: bytes) -> None:
    body = framed(message)
    assert message_of(body, "identity", 100) == message
    assert announced_bytes(body + more) == len(body)


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0", b"\0\0\0\0\1", b"\0\0\0\0\0x"])
def test_a_body_that_is_not_one_message_is_refused(body: bytes) -> None:
    with pytest.raises(ClientError, match="not one message"):
        message_of(body, "identity", 100)


def compressed(data: bytes, bits: int) -> bytes:
    engine = zlib.compressobj(wbits=bits)
    return engine.compress(data) + engine.flush()


@pytest.mark.parametrize(("encoding", "bits"), [("gzip", 31), ("deflate", 15)])
def test_a_compressed_message_is_inflated_within_its_bound(encoding: str, bits: int) -> None:
    data = compressed(b"a" * 1000, bits)
    body = b"\1" + framed(data)[1:]
    assert message_of(body, encoding, 1000) == b"a" * 1000
    with pytest.raises(PayloadTooLarge):
        inflate(data, encoding, 999)
    for damaged in (data[:-9], b"\0" + data):
        with pytest.raises(ClientError):
            inflate(damaged, encoding, 1000)


def test_an_unknown_compression_is_named() -> None:
    with pytest.raises(ClientError, match="'snappy' is unknown") as caught:
        inflate(b"", "snappy", 9)
    assert caught.value.grpc_code == "UNIMPLEMENTED"


TIMEOUTS = {
    b"1H": 3_600_000_000_000, b"2M": 120_000_000_000, b"3S": 3_000_000_000, b"4m": 4_000_000,
    b"5u": 5_000, b"6n": 6, b"": None, b"S": None, b"1x": None, b"-1S": None, b"1.5S": None,
}  # fmt: skip


@pytest.mark.parametrize("value", TIMEOUTS)
def test_a_timeout_is_read_in_its_unit(value: bytes) -> None:
    assert timeout_of(value) == TIMEOUTS[value]


def test_a_head_tells_method_coding_and_what_goes_on() -> None:
    head = Head(
        (
            (b":path", b"/s/M"),
            (b"grpc-encoding", b"gzip"),
            (b"te", b"trailers"),
            (b"k", b"v"),
            (b"k", b"w"),
        )
    )
    assert (head.method, head.encoding) == ("/s/M", "gzip")
    assert head.kept == (("k", "v"), ("k", "w"))


def cut(body: bytes, cuts: list[int]) -> list[bytes]:
    """The body in pieces."""
    ends = [0, *sorted({end for end in cuts if 0 < end < len(body)}), len(body)]
    return [body[start:end] for start, end in pairwise(ends)]


def decode_pieces(pieces: list[bytes], metadata: grpc_codec.Metadata) -> InferCall | None:
    return grpc_wire.decode_pieces(pieces, metadata, received_ns=5, remaining_ns=7)


@given(messages(), METADATA, st.lists(st.integers(1, 400), min_size=1, max_size=4), NAMES)
def test_a_message_in_pieces_is_the_same_call_or_left_to_be_joined(
    message: bytes, metadata: grpc_codec.Metadata, cuts: list[int], other: str
) -> None:
    """Also with another id than the one before, whatever its layout."""
    options: Any = {"received_ns": 5, "remaining_ns": 7}
    try:
        grpc_wire.decode(message, metadata, **options)  # its layout is the last one of its model
        request = pb.ModelInferRequest.FromString(message)
        request.id = other
        message = request.SerializeToString()
        whole = grpc_wire.decode(message, metadata, **options)
    except ClientError:
        return
    made = decode_pieces(cut(framed(message), cuts), metadata)
    if made is not None:
        assert bytes(made.raw) == message
        (tensor,) = made.inputs
        assert tensor.pieces is not None
        joined = replace(tensor, data=bytes(tensor.pieces), pieces=None)
        assert tensor.byte_size == joined.byte_size
        assert plain(replace(made, raw=whole.raw, inputs=(joined,))) == plain(whole)


def picture(size: int, number: str = "1", datatype: str = "UINT8") -> bytes:
    request = pb.ModelInferRequest(model_name="picture", id=number)
    request.inputs.add(name="IN", datatype=datatype, shape=(1, size))
    request.raw_input_contents.append(b"p" * size)
    made: bytes = request.SerializeToString()
    return made


def test_a_large_tensor_is_left_in_the_pieces_it_came_in() -> None:
    body = framed(picture(5000))
    assert grpc_wire.decode(picture(5000), (), received_ns=0, remaining_ns=None).inputs
    pieces = cut(framed(picture(5000, "2")), [100, 3000])
    made = decode_pieces(pieces, ())
    assert made is not None
    assert made.id == "2"
    (tensor,) = made.inputs
    assert tensor.pieces is not None
    assert list(tensor.pieces.parts[1:]) == pieces[1:]
    assert all(
        kept is given for kept, given in zip(tensor.pieces.parts[1:], pieces[1:], strict=True)
    )
    assert decode_pieces(cut(body, [3]), ()) is None  # the head is not in the first piece
    assert decode_pieces(cut(framed(picture(4999)), [100]), ()) is None  # another layout
    assert decode_pieces(cut(body[:-1], [100]), ()) is None
    assert decode_pieces([b"\1" + body[1:100], body[100:]], ()) is None  # compressed


def test_strings_are_put_together_for_their_lengths_are_walked() -> None:
    message = picture(5000, datatype="BYTES")
    assert grpc_wire.decode(message, (), received_ns=0, remaining_ns=None).inputs
    assert decode_pieces(cut(framed(message), [100]), ()) is None

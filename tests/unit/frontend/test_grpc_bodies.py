"""Bodies compared with one before: the same calls as protobuf reads, and only what is known."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.unit.frontend.test_grpc_wire import METADATA, RAW, messages, plain
from tritonsched.frontend import grpc_bodies, grpc_codec
from tritonsched.frontend.grpc_framing import framed
from tritonsched.tensors import InferCall


def known(body: bytes, metadata: Any = ()) -> InferCall | None:
    return grpc_bodies.decode_known(body, metadata, received_ns=3, remaining_ns=None)


def read(body: bytes) -> InferCall:
    return grpc_bodies.decode(body, (), received_ns=3, remaining_ns=None)


def message(call_id: str = "1", raw: bytes = b"ab", **fields: Any) -> Any:
    made = pb.ModelInferRequest(model_name="m", id=call_id, **fields)
    made.inputs.add(name="IN", datatype="UINT8", shape=[1, len(raw)])
    made.raw_input_contents.append(raw)
    return made


def body_of(made: Any) -> bytes:
    return framed(made.SerializeToString())


@given(messages(), messages(), METADATA, st.text(max_size=4), RAW)
def test_a_body_like_the_one_before_is_the_same_call_either_way(
    first: bytes, other: bytes, metadata: Any, call_id: str, raw: bytes
) -> None:
    read(framed(first))
    changed = pb.ModelInferRequest.FromString(first)
    changed.id = call_id
    if changed.raw_input_contents:
        changed.raw_input_contents[-1] = raw
    for near in (first, changed.SerializeToString(), other, first[:-1], first + b"\0"):
        made = known(framed(near), metadata)
        careful = grpc_codec.decode(near, metadata, received_ns=3, remaining_ns=None)
        if made is not None:
            assert plain(made) == plain(replace(careful, raw=made.raw))
            assert bytes(made.raw) == bytes(careful.raw) == near


@given(messages(), st.integers(0, 60), st.binary(min_size=1, max_size=1))
def test_a_damaged_body_is_the_same_call_or_unknown(sound: bytes, where: int, what: bytes) -> None:
    body = framed(sound)
    read(body)
    damaged = body[:where] + what + body[where + 1 :]
    made = known(damaged)
    if made is not None:
        assert damaged[:5] == body[:5]
        careful = grpc_codec.decode(damaged[5:], (), received_ns=3, remaining_ns=None)
        assert plain(made) == plain(replace(careful, raw=made.raw))


def test_a_steady_clients_bodies_are_known() -> None:
    read(body_of(message("1", b"ab")))
    made = known(body_of(message("2", b"cd")))
    assert made is not None
    assert (made.id, bytes(made.inputs[0].data), made.model) == ("2", b"cd", "m")


@pytest.mark.parametrize(
    "other",
    [
        body_of(message("1", b"abc")),
        body_of(message("12", b"ab")),
        body_of(message("\0", b"ab")),
        body_of(message("1", b"ab", model_version="1")),
        body_of(message("1", b"ab"))[:-1],
        b"\1" + body_of(message("1", b"ab"))[1:],
        body_of(message("1", b"ab")).replace(b"UINT8", b"UINT9"),
        b"",
        b"\0\0\0\0\0\x0a",
    ],
)
def test_anything_else_is_not(other: bytes) -> None:
    read(body_of(message("1", b"ab")))
    assert known(other) is None


def test_a_call_that_is_read_carefully_is_not_known_by_its_body() -> None:
    read(body_of(message()))
    assert known(body_of(message()), (("endpoint-load-metrics-format", "text"),)) is None
    garbage = body_of(message()).replace(b"\x1a\x011", b"\x1a\x01\xff")
    assert known(garbage) is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_bodies, "BODIES_MAX", 4)
    monkeypatch.setattr(grpc_bodies, "_bodies", {})
    for size in range(1, 20):
        read(body_of(message("1", bytes(size))))
        assert 1 <= len(grpc_bodies._bodies) <= 4

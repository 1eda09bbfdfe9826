"""Whatever bytes a client sends to the gRPC port on HTTP/2: damaged calls, cut anywhere."""

import asyncio
from itertools import pairwise
from random import Random
from typing import Any

import ngh2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conversation import conversation, spoilt
from tests.unit.frontend.h2_client import INFER, REQUEST
from tests.unit.frontend.services import Service, merged
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.errors import TritonUnavailable
from tritonsched.frontend import grpc_h2_connection
from tritonsched.frontend.grpc_framing import framed
from tritonsched.frontend.grpc_h2_call import Shared
from tritonsched.tensors import Cancel, Done, InferCall, Send

STREAM = f"{SERVICE}ModelStreamInfer"
LIMIT = 100_000


class Answering(Service):
    """Answers before `submit` returns."""

    def submit(self, call: InferCall, done: Done, send: Send | None = None) -> Cancel:
        done(merged())
        return lambda: None


class Nobody:
    """A Triton that is not there."""

    address = ""

    async def unary(self, *_given: Any, **_named: Any) -> Any:
        raise TritonUnavailable("nobody is there")

    def stream(self, *_given: Any, **_named: Any) -> Any:
        raise TritonUnavailable("nobody is there")


class Wire(asyncio.Transport):
    """A transport that only remembers whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        """Nothing to pause."""

    resume_reading = pause_reading


def said_by_a_client() -> bytes:
    """Settings and calls as a client sends them, to be damaged."""
    engine = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
    engine.initiate_connection({})
    parts = [engine.data_to_send()]
    for method in (INFER, STREAM, f"{SERVICE}ServerLive"):
        for body in (framed(REQUEST), framed(b"\xff"), b"\1\0"):
            head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode())]
            more = [(b":authority", b"x"), (b"content-type", b"application/grpc")]
            stream_id = engine.send_request([*head, *more])
            engine.send_data(stream_id, body, end_stream=True)
            parts.append(engine.data_to_send())
    return b"".join(parts)


SAID = said_by_a_client()
DAMAGE = st.lists(st.tuples(st.integers(0, len(SAID)), st.binary(max_size=12)), max_size=3)


@given(DAMAGE, st.lists(st.integers(0, len(SAID)), max_size=4))
def test_whatever_is_sent_is_answered_or_ends_the_connection(
    damage: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    """Nothing that a client sends raises, and nothing is written after the end."""
    said = SAID
    for where, what in damage:
        said = said[:where] + what + said[where + len(what) :]

    asyncio.run(hear(said, cuts))


@pytest.mark.parametrize("seed", range(0, 150, 10))
def test_spoilt_conversations_raise_nothing_and_leave_nothing(seed: int) -> None:
    """A small part of `make fuzz-h2`: faults by structure, floods among them."""
    for number in range(seed, seed + 10):
        random = Random(number)
        said = spoilt(conversation(random)[0], random)
        asyncio.run(hear(said, [random.randrange(len(said) + 1) for _ in range(3)]))


async def hear(said: bytes, cuts: list[int]) -> None:
    nobody: Any = Nobody()
    shared = Shared(Answering(), nobody, LIMIT)
    connection, wire = grpc_h2_connection.Connection(shared), Wire()
    connection.connection_made(wire)
    for start, end in pairwise(sorted({0, len(said), *cuts})):
        if not wire.closed:
            connection.data_received(said[start:end])
    while shared.tasks:
        await asyncio.wait(shared.tasks)
    connection.connection_lost(None)
    assert connection.is_idle
    assert not list(shared.gate)

"""Several servers as one gRPC port."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.backend.pair import LEFT, RIGHT, Pair
from tritonsched.backend.base import Homed
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import GrpcReply

# -- control calls over gRPC ----------------------------------------------------------------------


def played(pair: Pair, monkeypatch: pytest.MonkeyPatch, **replies: GrpcReply | None) -> list[str]:
    """Each server answers so; None: nobody there. Returns who was asked."""
    asked: list[str] = []
    for name, reply in replies.items():

        async def unary(*_: Any, name: str = name, reply: GrpcReply | None = reply) -> GrpcReply:
            asked.append(name)
            if reply is None:
                raise TritonUnavailable("nobody there")
            return reply

        monkeypatch.setattr(pair.grpc[name], "unary", unary)
    return asked


YES, NO = GrpcReply("OK", "", b"\x08\x01"), GrpcReply("OK", "", b"")
FAULT = GrpcReply("NOT_FOUND", "no such model", b"")


@pytest.mark.parametrize(
    ("left", "right", "answer"),
    [
        (YES, FAULT, YES),
        (NO, YES, YES),
        (FAULT, YES, YES),
        (FAULT, NO, NO),
        (NO, FAULT, NO),
        (FAULT, FAULT, FAULT),
        (None, YES, YES),
    ],
)
async def test_a_question_is_answered_by_the_first_that_says_yes(
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    left: GrpcReply | None,
    right: GrpcReply | None,
    answer: GrpcReply,
) -> None:
    whom = played(pair, monkeypatch, left=left, right=right)
    assert await pair.all_grpc.unary(f"{SERVICE}ModelReady", b"") == answer
    assert whom == ([LEFT] if left is YES else [LEFT, RIGHT])


async def test_nobody_there_is_said(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    played(pair, monkeypatch, left=None, right=None)
    for method in ("ModelReady", "RepositoryModelLoad", "ModelStatistics"):
        with pytest.raises(TritonUnavailable):
            await pair.all_grpc.unary(SERVICE + method, b"")


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "TraceSetting", "LogSettings"])
async def test_what_changes_a_server_goes_to_all_and_an_error_names_its_server(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whom = played(pair, monkeypatch, left=YES, right=FAULT)
    reply = await pair.all_grpc.unary(SERVICE + method, b"")
    assert (reply.code, reply.details) == ("NOT_FOUND", "server 'right': no such model")
    assert sorted(whom) == [LEFT, RIGHT]


async def test_indices_are_united_and_the_ready_one_counts(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def index(**states: str) -> GrpcReply:
        answer = pb.RepositoryIndexResponse()
        for name, state in states.items():
            answer.models.add(name=name, version="1", state=state)
        return GrpcReply("OK", "", answer.SerializeToString())

    played(pair, monkeypatch, left=index(a="READY", b=""), right=index(b="READY", c="READY"))
    reply = await pair.all_grpc.unary(f"{SERVICE}RepositoryIndex", b"")
    found = pb.RepositoryIndexResponse.FromString(bytes(reply.message)).models
    assert [(m.name, m.state) for m in found] == [("a", "READY"), ("b", "READY"), ("c", "READY")]


def statistics(count: int, rows: int) -> Any:
    answer = pb.ModelStatisticsResponse()
    made = answer.model_stats.add(name="m", version="1", last_inference=count)
    made.inference_count, made.execution_count = 4 * count, count
    made.inference_stats.success.count, made.inference_stats.success.ns = count, 10 * count
    sized = made.batch_stats.add(batch_size=rows)
    sized.compute_infer.count, sized.compute_infer.ns = count, 5 * count
    made.memory_usage.add(type="GPU", id=count, byte_size=9)
    made.response_stats["0"].success.count = count
    return answer


@pytest.mark.parametrize("rows", [4, 8])
async def test_statistics_are_sums(pair: Pair, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    left = GrpcReply("OK", "", statistics(3, 4).SerializeToString())
    right = GrpcReply("OK", "", statistics(5, rows).SerializeToString())
    played(pair, monkeypatch, left=left, right=right)
    reply = await pair.all_grpc.unary(f"{SERVICE}ModelStatistics", b"")
    (made,) = pb.ModelStatisticsResponse.FromString(bytes(reply.message)).model_stats
    assert (made.inference_count, made.execution_count, made.last_inference) == (32, 8, 5)
    assert (made.inference_stats.success.count, made.inference_stats.success.ns) == (8, 80)
    sizes = {sized.batch_size: sized.compute_infer.count for sized in made.batch_stats}
    assert sizes == ({4: 8} if rows == 4 else {4: 3, 8: 5})
    assert [usage.id for usage in made.memory_usage] == [3, 5]
    assert made.response_stats["0"].success.count == 8


async def test_statistics_of_one_that_has_the_model_are_its_own(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = GrpcReply("OK", "", statistics(3, 4).SerializeToString())
    played(pair, monkeypatch, left=left, right=FAULT)
    assert await pair.all_grpc.unary(f"{SERVICE}ModelStatistics", b"") == left
    played(pair, monkeypatch, left=FAULT, right=FAULT)
    assert (await pair.all_grpc.unary(f"{SERVICE}ModelStatistics", b"")).code == "NOT_FOUND"
    broken = GrpcReply("OK", "", b"\xff")
    played(pair, monkeypatch, left=broken, right=left)
    assert await pair.all_grpc.unary(f"{SERVICE}ModelStatistics", b"") == broken


# -- clients' shared memory -----------------------------------------------------------------------


def register(name: str) -> bytes:
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key="/k", byte_size=4)
    encoded: bytes = request.SerializeToString()
    return encoded


def regions(pair: Pair) -> list[set[str]]:
    """Clients' regions, by server."""
    return [{r for r in pair.grpc[n].regions if r.startswith("c")} for n in (LEFT, RIGHT)]


async def test_a_region_is_registered_on_all_and_on_a_server_that_comes_back(
    pair: Pair, tmp_path: Path
) -> None:
    (tmp_path / "k").write_bytes(b"1234")
    reply = await pair.all_grpc.unary(f"{SERVICE}SystemSharedMemoryRegister", register("c1"))
    assert (reply.code, regions(pair)) == ("OK", [{"c1"}, {"c1"}])
    pair.grpc[RIGHT].regions.clear()  # it was restarted
    await pair.fleet.connect(RIGHT)
    assert regions(pair) == [{"c1"}, {"c1"}]
    one = pb.SystemSharedMemoryUnregisterRequest(name="c1").SerializeToString()
    await pair.all_grpc.unary(f"{SERVICE}SystemSharedMemoryUnregister", one)
    pair.grpc[RIGHT].regions.clear()
    await pair.fleet.connect()
    assert regions(pair) == [set(), set()]


async def test_a_region_that_one_server_refuses_is_on_none(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"1234")
    pair.grpc[RIGHT].directory = tmp_path / "another host"
    reply = await pair.all_grpc.unary(f"{SERVICE}SystemSharedMemoryRegister", register("c1"))
    assert reply.code == "INTERNAL"
    assert reply.details.startswith("server 'right': ")
    assert regions(pair) == [set(), set()]
    assert len(pair.fleet.registrations) == 0


async def test_a_message_that_cannot_be_read_is_tritons_to_refuse(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(pair, monkeypatch, left=FAULT, right=FAULT)
    reply = await pair.all_grpc.unary(f"{SERVICE}SystemSharedMemoryRegister", b"\xff")
    assert reply.code == "NOT_FOUND"


# -- streams --------------------------------------------------------------------------------------


class Call:
    """A stream of one server: answers each message with itself."""

    def __init__(self, server: str, messages: AsyncIterator[bytes]) -> None:
        self.server = server
        self._messages = messages

    async def initial_metadata(self) -> str:
        return self.server

    async def trailing_metadata(self) -> str:
        return self.server

    async def read(self) -> bytes:
        return await anext(self._messages, b"end")


@pytest.mark.parametrize(("home", "server"), [("", LEFT), (RIGHT, RIGHT)])
async def test_a_stream_opens_where_its_first_message_belongs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, home: str, server: str
) -> None:
    for name, grpc in pair.grpc.items():
        monkeypatch.setattr(grpc, "stream", lambda _, sent, __, name=name: Call(name, sent))

    async def messages() -> AsyncIterator[bytes]:
        given.home = home
        yield b"1"
        yield b"2"

    async with aclosing(messages()) as sent:  # type: ignore[type-var]  # an async generator
        given = Homed(sent)
        call = pair.all_grpc.stream("s", given)
        assert [await call.read() for _ in range(3)] == [b"1", b"2", b"end"]
        assert await call.initial_metadata() == await call.trailing_metadata() == server
        assert given.home == server


async def test_a_stream_without_messages_is_opened_anywhere(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair.grpc[LEFT], "stream", lambda _, sent, __: Call(LEFT, sent))

    async def none() -> AsyncIterator[bytes]:
        return
        yield b""

    call = pair.all_grpc.stream("s", none())
    assert await call.read() == b"end"

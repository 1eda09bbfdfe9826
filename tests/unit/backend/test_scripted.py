"""The fake that ships does what its script says, in the time its sleeper has."""

import asyncio

import pytest

from tests.unit.backend.contract import COLUMNS, BackendContract, batch, executed, lone_call, row
from tests.virtual_loop import VirtualLoop, run_virtual
from tritonsched.backend.base import Backend
from tritonsched.backend.batch_call import BatchCall
from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.backend.scripted import (
    ScriptedBackend,
    Step,
    fail,
    hang,
    lose,
    malformed,
    ok,
)
from tritonsched.errors import BackendError, MalformedAnswer, TritonUnavailable
from tritonsched.tensors import GrpcReply, HttpReply, InferCall, Tensor, Wire

MS = 1_000_000
ECHO = ModelInfo(
    name="echo",
    version="",
    max_batch_size=8,
    inputs={"INPUT": TensorInfo("INPUT", "FP32", (COLUMNS,))},
    outputs={"OUTPUT": TensorInfo("OUTPUT", "FP32", (COLUMNS,))},
    devices=("cpu:echo:0",),
)


async def no_time(ns: int) -> None:
    """A sleeper for scripts whose steps take none."""
    raise AssertionError(f"slept {ns} ns")


def scripted(*steps: Step) -> ScriptedBackend:
    return ScriptedBackend(steps, models={"echo": ECHO}, sleeper=no_time)


class TestContract(BackendContract):
    """The promises of a backend."""

    @pytest.fixture
    def backend(self) -> Backend:
        return scripted()


def test_each_call_takes_the_next_step_in_its_time() -> None:
    """4 ms, then a failure at once, then 9 ms: on virtual time, exactly."""

    async def main(loop: VirtualLoop) -> list[tuple[int, str]]:
        backend = ScriptedBackend(
            [ok(4 * MS), fail(), ok(9 * MS)], models={"echo": ECHO}, sleeper=loop.pause
        )
        seen = []
        for _ in range(3):
            try:
                (await executed(backend, batch(row(0)))).release()
                seen.append((loop.now_ns(), "ok"))
            except BackendError:
                seen.append((loop.now_ns(), "failed"))
        return seen

    assert run_virtual(main) == [(4 * MS, "ok"), (4 * MS, "failed"), (13 * MS, "ok")]


async def test_after_the_script_the_last_word_is_afterwards() -> None:
    """By default everything works."""
    backend = ScriptedBackend([ok()], models={"echo": ECHO}, sleeper=no_time, afterwards=fail())
    (await executed(backend, batch(row(0)))).release()
    for _ in range(2):
        with pytest.raises(BackendError):
            await executed(backend, batch(row(0)))


async def test_a_lone_call_that_fails_is_answered_with_an_error() -> None:
    """As by Triton, which answers on either protocol."""
    backend = scripted(fail(), fail())
    http = await backend.forward(lone_call(Wire.HTTP))
    grpc = await backend.forward(lone_call(Wire.GRPC))
    assert isinstance(http, HttpReply)
    assert isinstance(grpc, GrpcReply)
    assert (http.status, grpc.code) == (500, "INTERNAL")


async def test_a_lost_connection_and_a_malformed_answer_raise() -> None:
    """Both ways in; a lone call's bytes are not looked at."""
    backend = scripted(lose(), malformed(), lose(), malformed())
    with pytest.raises(TritonUnavailable):
        await executed(backend, batch(row(0)))
    with pytest.raises(MalformedAnswer):
        await executed(backend, batch(row(0)))
    with pytest.raises(TritonUnavailable):
        await backend.forward(lone_call(Wire.GRPC))
    assert await backend.forward(lone_call(Wire.GRPC)) == GrpcReply("OK", "", b"")


async def test_a_hanging_call_waits_to_be_resumed_and_the_next_one_does_not() -> None:
    """Its end is still the script's."""
    backend = scripted(hang(), hang(fail()), ok())
    first = asyncio.ensure_future(executed(backend, batch(row(0))))
    second = asyncio.ensure_future(executed(backend, batch(row(1))))
    third = asyncio.ensure_future(executed(backend, batch(row(2))))
    (await third).release()
    assert not first.done()
    assert not second.done()
    backend.resume()
    (await first).release()
    with pytest.raises(BackendError):
        await second


async def test_while_triton_is_away_everything_but_ready_raises() -> None:
    """And works again when it is back."""
    backend = scripted(hang())
    out = asyncio.ensure_future(executed(backend, batch(row(0))))
    while not backend.batches:
        await asyncio.wait({out}, timeout=0)
    backend.is_up = False
    backend.resume()
    with pytest.raises(TritonUnavailable):
        await out
    assert not await backend.ready()
    with pytest.raises(TritonUnavailable):
        await backend.model_info("echo", "")
    with pytest.raises(TritonUnavailable):
        await backend.forward(lone_call(Wire.HTTP))
    backend.is_up = True
    (await executed(backend, batch(row(0)))).release()


async def test_unreleased_answers_are_counted_and_released_once() -> None:
    """So that a test of the driver sees a leak."""
    backend = scripted()
    reply = await executed(backend, batch(row(0)))
    assert backend.unreleased == 1
    reply.release()
    assert backend.unreleased == 0
    with pytest.raises(AssertionError, match="twice"):
        reply.release()


async def test_answers_are_computed_and_calls_kept_as_told() -> None:
    """Own functions for merged and lone answers; what came in can be looked at."""

    def doubled(call: BatchCall) -> tuple[Tensor, ...]:
        data = call.inputs[0].joined() * 2
        return (Tensor("OUTPUT", "FP32", (2 * call.rows, COLUMNS), data),)

    def teapot(call: InferCall) -> HttpReply:
        return HttpReply(418, call.id, (), b"")

    backend = ScriptedBackend(
        [], models={"echo": ECHO}, sleeper=no_time, compute=doubled, reply=teapot
    )
    merged, lone = batch(row(5)), lone_call(Wire.HTTP)
    reply = await executed(backend, merged)
    assert bytes(reply.outputs[0].data) == row(5) * 2
    assert await backend.forward(lone) == HttpReply(418, "mine", (), b"")
    assert (backend.batches, backend.lone) == ([merged], [lone])
    await backend.close()
    assert backend.closed

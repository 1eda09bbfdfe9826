"""ModelStreamInfer and generate_stream through the sidecar against Triton itself: the same messages
in the same order, and each of them in its turn.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tests.integration.sidecars import grpc_url, http_url, metric, running_sidecar
from tests.integration.stage import PATIENCE_S, Stage, awaited, staged, stub_of, until
from tests.integration.stream_models import SLOTS, ask, in_sequence
from tests.unit.frontend.http_client import Reply, connected

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, build_dir: Path) -> AsyncIterator[Stage]:
    """One for all tests of the module: none leaves anything behind."""
    policy = "shield: {allow: [strict-stream]}"  # no model fails on one here
    async with staged(tmp_path_factory.mktemp("streams"), build_dir, policy=policy) as made:
        yield made


async def answers(
    address: str, requests: Iterable[Any], metadata: tuple[tuple[str, str], ...] = ()
) -> tuple[list[Any], str, Any, Any]:
    """All that a stream says: messages, status, metadata first and last."""
    async with stub_of(address) as stub, asyncio.timeout(PATIENCE_S):
        call = stub.ModelStreamInfer(iter(tuple(requests)), metadata=metadata)
        said = []
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for answer in call:
                said.append(answer)  # noqa: PERF401  # what came before an error counts
        status = f"{(await call.code()).name}: {await call.details()}"
        return said, status, await call.initial_metadata(), await call.trailing_metadata()


def repeat(count: int, **fields: Any) -> Any:
    return ask("repeat", count, rows=False, **fields)


def with_final(request: Any) -> Any:
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def undeclared(request: Any) -> Any:
    request.inputs[0].datatype = "INT8"
    return request


STREAMS: dict[str, list[Any]] = {
    "nothing": [],
    "one": [ask("plain", 1, id="a")],
    "many in order": [ask("plain", number, id=str(number)) for number in range(20)],
    "no ids": [ask("plain", number) for number in range(5)],
    "an ensemble": [ask("double", 3, id="e"), ask("plain", 4, id="p")],
    "a sequence": [in_sequence(ask("summed", 1, id=str(i)), 7, i, 4) for i in range(4)],
    "two sequences": [
        in_sequence(ask("summed", who, id=f"{who}-{i}"), who, i, 3)
        for i in range(3)
        for who in (11, 12)
    ],
    "decoupled": [repeat(3, id="r")],
    "decoupled of none": [repeat(0, id="r")],
    "decoupled with a final one": [with_final(repeat(2, id="r"))],
    "decoupled of none with a final one": [with_final(repeat(0, id="r"))],
    "an unknown model": [ask("nobody", 1, id="n"), ask("plain", 2, id="p")],
    "an error in the middle": [
        ask("plain", 1, id="a"),
        undeclared(ask("plain", 2, id="bad")),
        ask("plain", 3, id="c"),
    ],
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_says_what_tritons_says(stage: Stage, name: str) -> None:
    theirs = await answers(stage.triton.grpc_address, STREAMS[name])
    assert await answers(grpc_url(stage.sidecar), STREAMS[name]) == theirs


async def test_an_error_with_its_status_asked_for_is_tritons(stage: Stage) -> None:
    asked = [ask("nobody", 1, id="b")]
    metadata = (("triton_grpc_error", "true"),)
    theirs = await answers(stage.triton.grpc_address, asked, metadata)
    assert await answers(grpc_url(stage.sidecar), asked, metadata) == theirs


async def test_a_message_that_is_none_ends_the_stream_as_tritons(stage: Stage) -> None:
    """After what came before it."""

    async def said(address: str) -> tuple[list[bytes], str]:
        good = ask("plain", 1, id="a").SerializeToString()
        async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(PATIENCE_S):
            start: Any = channel.stream_stream(
                "/inference.GRPCInferenceService/ModelStreamInfer", None, None
            )
            call = start()
            await call.write(good)
            heard = [await call.read()]
            await call.write(b"\xff\xff")
            while (answer := await call.read()) is not EOF:
                heard.append(answer)
            return heard, (await call.code()).name

    assert await said(grpc_url(stage.sidecar)) == await said(stage.triton.grpc_address)


async def test_decoupled_answers_of_two_requests_each_keep_their_order(stage: Stage) -> None:
    asked = [repeat(5, id="x"), ask("plain", 1, id="p"), repeat(5, id="y")]
    said, status, _, _ = await answers(grpc_url(stage.sidecar), asked)
    assert status == "OK: "
    for name in "xy":
        values = [
            answer.infer_response.raw_output_contents[0]
            for answer in said
            if answer.infer_response.id == name
        ]
        assert len(values) == len(set(values)) == 5
        assert values == sorted(values, key=lambda raw: raw[::-1])  # FP32 0 to 4, little-endian


async def test_messages_are_counted_and_have_classes_and_deadlines(stage: Stage) -> None:
    """A refusal is worded as Triton words errors in a stream; the stream goes on."""
    sidecar = stage.sidecar
    before = await metric(sidecar, "tritonsched_requests_total", model="plain", outcome="served")
    late = ask("plain", 1, id="late")
    late.parameters["timeout"].int64_param = 1  # µs
    asked = [ask("plain", 0, id="a"), late, ask("plain", 2, id="c")]
    said, status, _, _ = await answers(grpc_url(sidecar), asked)
    assert status == "OK: "
    assert [answer.infer_response.id for answer in said] == ["a", "late", "c"]
    assert "cannot be answered" in said[1].error_message or "passed" in said[1].error_message
    after = await metric(sidecar, "tritonsched_requests_total", model="plain", outcome="served")
    assert after == before + 2


async def test_a_refusal_ends_a_strict_stream_with_its_status(stage: Stage) -> None:
    late = ask("plain", 1, id="late")
    late.parameters["timeout"].int64_param = 1
    metadata = (("triton_grpc_error", "true"),)
    said, status, _, trailers = await answers(grpc_url(stage.sidecar), [late], metadata)
    assert said == []
    assert status.startswith("DEADLINE_EXCEEDED")
    assert dict(trailers)["x-tritonsched-reason"]


async def test_a_stream_waits_for_its_turn_like_any_call(stage: Stage) -> None:
    """Its message is sent when the device is free, and its class' bound of waiting holds."""
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        jam = await stage.jam(stub)
        stream = stub.ModelStreamInfer(iter([ask("gated", 2, id="s")]))
        await stage.queued("gated", 2)
        async with stage.gate.open():
            assert (await stream.read()).infer_response.id == "s"
            assert await stream.read() is EOF
            await asyncio.gather(*jam)


async def test_a_sequence_of_unary_calls_sent_at_once_keeps_its_order(stage: Stage) -> None:
    """Each sum holds what came before it: nothing was overtaken, on either protocol."""
    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        calls = [
            awaited(stub.ModelInfer(in_sequence(ask("summed", who), who, step, 20)))
            for step in range(20)
            for who in (101, 102, 103)
        ]
        replies = await asyncio.gather(*calls)
        sums = [np.frombuffer(reply.raw_output_contents[0], np.float32)[0] for reply in replies]
        assert sums == [who * (step + 1) for step in range(20) for who in (101, 102, 103)]


async def test_more_sequences_than_triton_has_slots_do_not_starve_each_other(
    stage: Stage,
) -> None:
    """Those that wait in Triton for a slot do not keep the others from ending."""
    steps = range(4)

    async def sequence(stub: Any, who: int) -> list[float]:
        sums = []
        for step in steps:
            asked = in_sequence(ask("summed", who), who, step, len(steps))
            raw = (await stub.ModelInfer(asked)).raw_output_contents[0]
            sums.append(float(np.frombuffer(raw, np.float32)[0]))
        return sums

    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        crowd = range(201, 201 + SLOTS + 6)
        sums = await asyncio.gather(*[sequence(stub, who) for who in crowd])
        assert sums == [[who * (step + 1.0) for step in steps] for who in crowd]


async def test_sequences_that_wait_together_are_sent_together(stage: Stage) -> None:
    """So that Triton's own sequence batcher has something to merge; each sum is its sequence's."""
    crowd = range(301, 301 + SLOTS)
    many = 10_000  # steps: until it is seen

    async def batches() -> float:
        return await metric(stage.sidecar, "tritonsched_batch_rows_count", model="summed")

    async with stub_of(grpc_url(stage.sidecar)) as stub, asyncio.timeout(PATIENCE_S):
        for step in range(many):
            before = await batches()
            asked = [in_sequence(ask("summed", who), who, step, many) for who in crowd]
            replies = await asyncio.gather(*[awaited(stub.ModelInfer(each)) for each in asked])
            sums = [np.frombuffer(reply.raw_output_contents[0], np.float32)[0] for reply in replies]
            assert sums == [who * (step + 1.0) for who in crowd]
            if await batches() - before < len(crowd):
                break
        assert step > 0  # a start goes alone
        ends = [in_sequence(ask("summed", 0), who, many - 1, many) for who in crowd]
        await asyncio.gather(*[awaited(stub.ModelInfer(each)) for each in ends])


# -- generate ---------------------------------------------------------------------------------

GENERATE: dict[str, tuple[str, bytes]] = {
    "a stream": ("repeat/generate_stream", b'{"IN":[3.0]}'),
    "a stream of none": ("repeat/generate_stream", b'{"IN":[0.0]}'),
    "of one answer": ("repeat/generate", b'{"IN":[1.0]}'),
    "of too many answers": ("repeat/generate", b'{"IN":[2.0]}'),
    "of an ordinary model": ("plain/generate", b'{"IN":[[2.0]],"timeout":"x"}'),
    "an ordinary model streamed": ("plain/generate_stream", b'{"IN":[[2.0]]}'),
    "an unknown model": ("nobody/generate", b'{"IN":[2.0]}'),
    "no JSON": ("repeat/generate_stream", b"{"),
    "an unknown input": ("repeat/generate_stream", b'{"ON":[2.0]}'),
    "of a version": ("repeat/versions/1/generate_stream", b'{"IN":[1.0]}'),
    "of no version": ("repeat/versions/2/generate_stream", b'{"IN":[1.0]}'),
}


@pytest.mark.parametrize("name", GENERATE)
async def test_what_is_generated_is_tritons(stage: Stage, name: str) -> None:
    path, body = GENERATE[name]

    async def said(address: str) -> Reply:
        async with connected(int(address.rpartition(":")[2])) as client:
            client.ask("POST", f"/v2/models/{path}", "Host: x", body=body)
            return await client.reply()

    async with asyncio.timeout(PATIENCE_S):
        assert await said(http_url(stage.sidecar)) == await said(stage.triton.http_address)


async def test_a_client_of_http_1_0_is_told_what_triton_tells_it(stage: Stage) -> None:
    """Chunks, though HTTP/1.0 has none, and the connection's end."""

    async def said(address: str) -> Reply:
        async with connected(int(address.rpartition(":")[2])) as client:
            head = b"POST /v2/models/repeat/generate_stream HTTP/1.0\r\nContent-Length: 12\r\n\r\n"
            client.send(head + b'{"IN":[2.0]}')
            reply = await client.reply()
            assert await client.is_closed()
            return reply

    async with asyncio.timeout(PATIENCE_S):
        assert await said(http_url(stage.sidecar)) == await said(stage.triton.http_address)


async def test_generating_waits_for_its_turn_and_is_refused_before_a_byte(stage: Stage) -> None:
    body = b'{"IN":[[2.0]]}'
    port = int(http_url(stage.sidecar).rpartition(":")[2])
    async with (
        stub_of(grpc_url(stage.sidecar)) as stub,
        connected(port) as late,
        connected(port) as patient,
        asyncio.timeout(PATIENCE_S),
    ):
        jam = await stage.jam(stub)
        patient.ask("POST", "/v2/models/gated/generate_stream", "Host: x", body=body)
        await stage.queued("gated", 2)
        deadline = "x-request-deadline-ms: 1"
        late.ask("POST", "/v2/models/gated/generate_stream", "Host: x", deadline, body=body)
        refused = await late.reply()
        assert refused.status == 504
        assert refused.headers["x-tritonsched-reason"]
        async with stage.gate.open():
            answer = await patient.reply()
            assert (answer.status, answer.body[:6]) == (200, b"data: ")
            await asyncio.gather(*jam)


# -- the end of the sidecar -------------------------------------------------------------------


async def test_a_drain_answers_what_a_stream_has_sent_and_ends_it(stage: Stage) -> None:
    """The client is told to go elsewhere once its answers are there, not cut off."""
    async with (
        running_sidecar(stage.triton, drain_s=20.0) as sidecar,
        stub_of(grpc_url(sidecar)) as stub,
        asyncio.timeout(PATIENCE_S),
    ):
        idle, busy = stub.ModelStreamInfer(), stub.ModelStreamInfer()
        for stream, model in ((idle, "plain"), (busy, "gated")):
            await stream.write(ask(model, 1, id="x"))
        assert (await idle.read()).infer_response.id == "x"
        await until(lambda: sidecar.scheduler.queued().get("gated") == 0)
        stopping = asyncio.ensure_future(sidecar.stop())
        await stage.gate.let_one_through()
        assert (await busy.read()).infer_response.id == "x"
        for stream in (idle, busy):
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE
            assert ("x-tritonsched-reason", "draining") in tuple(await stream.trailing_metadata())
        await stopping

"""Triton's HTTP port as the sidecar serves it: routes, answers, streams, clients that leave."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.unit.frontend.http_client import connected
from tests.unit.frontend.http_setup import INFER, STREAM, Events, Gate, serving
from tests.unit.frontend.services import (
    DATA,
    EXPLAIN,
    EXPLAINED,
    Service,
    always,
    http_reply,
    merged,
)
from tests.unit.frontend.wires import HOST, fixed, unused_address
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import QueueFull, StartupError
from tritonsched.frontend.http_codec import HEAD_LENGTH
from tritonsched.frontend.http_server import HttpServer
from tritonsched.tensors import Answer, InferCall

# -- routes and answers -----------------------------------------------------------------------

OURS = {
    "/v2/models/m/infer": ("m", ""),
    "/v2/models/m/versions/3/infer": ("m", "3"),
    "/v2/models/m/versions/03/infer": ("m", "03"),
    "/v2/models/m/infer?x=1": ("m", ""),
    "/v2/models/%73imple/infer": ("%73imple", ""),
    "/v2/models/a b:c/infer".replace(" ", "+"): ("a+b:c", ""),
    "http://triton:8000/v2/models/m/infer": ("m", ""),
}


@pytest.mark.parametrize("target", OURS)
async def test_an_inference_is_the_services_by_its_raw_path(target: str) -> None:
    async with serving() as there:
        reply = await there.ask("POST", target, "X-Mine: 1", body=b"body")
        (call,) = there.service.calls
        assert (call.model, call.version) == OURS[target]
        assert call.path == target.removeprefix("http://triton:8000")
        assert (call.raw, call.headers[0]) == (b"body", ("X-Mine", "1"))
        assert (reply.status, reply.body[-16:]) == (200, DATA)
        assert there.triton.seen == []


THEIRS = [
    ("GET", INFER),
    ("PUT", INFER),
    ("POST", "/v2/models/m/infer/"),
    ("POST", "/v2/models//infer"),
    ("POST", "/v2/models/m/n/infer"),
    ("POST", "/v2/models/m/versions/x/infer"),
    ("POST", "/v2/models/m/versions//infer"),
    ("POST", "//v2/models/m/infer"),
    ("POST", "/v2/models/m/infer%20"),
    ("POST", "/v2/models/m/infer#x"),
    ("GET", "/v2"),
    ("GET", "/no/such/thing?a=%20"),
    ("DELETE", "/v2/models/m"),
    ("POST", "/v2/systemsharedmemory/region/r/register"),
    ("POST", "/v2/repository/index"),
]


@pytest.mark.parametrize(("method", "path"), THEIRS)
async def test_everything_else_is_tritons_as_it_came(method: str, path: str) -> None:
    async with serving() as there:
        reply = await there.ask(method, path, "X-Mine: 1", "Connection: keep-alive", body=b"b")
        head = f"{method} {path} HTTP/1.1\r\nHost: {there.triton.address}\r\nX-Mine: 1\r\n"
        assert there.triton.seen == [f"{head}Content-Length: 1\r\n\r\nb".encode()]
        assert (reply.status, reply.body) == (200, b"theirs")
        assert reply.headers == {"x-from": "triton", "content-length": "6"}
        assert there.service.calls == []
        assert there.service.said == []


async def test_tritons_answer_to_a_lone_call_is_passed_on_as_it_is() -> None:
    async with serving(Service(always(http_reply()))) as there:
        reply = await there.ask("POST", INFER)
        assert (reply.status, reply.reason, reply.body) == (400, "Bad Request", b"why")
        assert reply.headers == {"x-a": "1", "content-length": "3"}


async def test_a_merged_answer_has_tritons_headers_and_no_others() -> None:
    async with serving() as there:
        reply = await there.ask("POST", INFER)
        length = int(reply.headers[HEAD_LENGTH.lower()])
        assert json.loads(reply.body[:length])["model_version"] == "3"
        assert reply.headers.keys() == {
            "content-type", "content-length", HEAD_LENGTH.lower(),
        }  # fmt: skip


@pytest.mark.parametrize("answer", [merged(explain=EXPLAIN), http_reply(explain=EXPLAIN)])
async def test_an_explained_answer_carries_the_explanation(answer: Answer) -> None:
    async with serving(Service(always(answer))) as there:
        reply = await there.ask("POST", INFER)
        assert reply.headers["x-tritonsched-explain"] == EXPLAINED


async def test_a_refusal_has_status_reason_hint_and_a_v2_body() -> None:
    error = QueueFull("model 'm': 4096 requests wait", retry_after_ns=1_500_000_000)
    async with serving(Service(always(error))) as there:
        reply = await there.ask("POST", INFER)
        assert (reply.status, reply.reason) == (429, "Too Many Requests")
        assert reply.headers["x-tritonsched-reason"] == "queue-full"
        assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("2", "1500")
        assert json.loads(reply.body) == {"error": "model 'm': 4096 requests wait"}


async def test_a_fault_of_ours_is_an_answer_and_the_next_request_is_served() -> None:
    answers: Iterator[Answer | Exception] = iter([ValueError("secret"), merged()])

    async def answer(call: InferCall) -> Answer:
        return await always(next(answers))(call)

    async with serving(Service(answer)) as there, connected(there.server.port) as client:
        client.ask("POST", INFER)
        reply = await client.reply()
        assert (reply.status, reply.headers["x-tritonsched-reason"]) == (500, "internal")
        assert b"secret" not in reply.body
        client.ask("POST", INFER)
        assert (await client.reply()).status == 200


async def test_head_is_refused_without_a_body() -> None:
    """Triton answers it with one, which no client can read."""
    async with serving() as there, connected(there.server.port) as client:
        for path in (INFER, "/v2/health/live"):
            client.send(f"HEAD {path} HTTP/1.1\r\n\r\n".encode())
            reply = await client.head()
            assert (reply.status, reply.reason) == (405, "Not Allowed")
        assert there.triton.seen == []


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v2/repository/models/m/load", "m"),
        ("/v2/repository/models/m/unload", "m"),
        ("/v2/repository/r/models/m/load?x=1", "m"),
    ],
)
async def test_a_model_is_forgotten_before_and_after_triton_loads_or_unloads_it(
    path: str, model: str
) -> None:
    service = Service()

    async def load(request: bytes, writer: asyncio.StreamWriter) -> None:
        service.said.append("triton")
        await fixed("200 OK")(request, writer)

    async with serving(service, load) as there:
        assert (await there.ask("POST", path)).status == 200
        assert service.said == [f"invalidate {model}", "triton", f"invalidate {model}"]


async def test_readiness_is_tritons_word_and_ours() -> None:
    async with serving() as there:
        assert (await there.ask("GET", "/v2/health/ready")).status == 200
        there.service.ready = False
        reply = await there.ask("GET", "/v2/health/ready")
        assert (reply.status, reply.body) == (400, b"")
        assert (await there.ask("GET", "/v2/health/live")).status == 200


async def test_readiness_is_not_ours_alone() -> None:
    async with serving(triton=fixed("400 Bad Request")) as there:
        assert (await there.ask("GET", "/v2/health/ready")).status == 400


async def test_without_triton_a_forwarded_call_is_told_so() -> None:
    async with serving(address=await unused_address()) as there:
        for method, path in (("GET", "/v2"), ("POST", "/v2/models/m/generate_stream")):
            reply = await there.ask(method, path)
            assert (reply.status, reply.headers["x-tritonsched-reason"]) == (
                503,
                "triton-unavailable",
            )
            assert reply.headers["retry-after"] == "1"


# -- clients that leave, servers that stop ----------------------------------------------------


async def test_a_client_that_leaves_cancels_its_call_and_no_other() -> None:
    gate = Gate()
    async with serving(Service(gate)) as there, connected(there.server.port) as other:
        other.ask("POST", INFER)
        await gate.reached.acquire()
        async with connected(there.server.port) as leaving:
            leaving.ask("POST", INFER)
            await gate.reached.acquire()
        await gate.left.wait()
        gate.open.release()
        assert (await other.reply()).status == 200


async def test_a_client_that_leaves_before_its_turn_is_never_served() -> None:
    gate = Gate()
    async with serving(Service(gate)) as there:
        async with connected(there.server.port) as leaving:
            leaving.ask("POST", INFER)
            leaving.ask("POST", INFER)
            await gate.reached.acquire()
        await gate.left.wait()
        assert len(there.service.calls) == 1


async def test_a_stop_finishes_what_runs_and_takes_nothing_new() -> None:
    gate = Gate()
    async with (
        serving(Service(gate)) as there,
        connected(there.server.port) as idle,
        connected(there.server.port) as client,
    ):
        client.ask("POST", INFER)
        await gate.reached.acquire()
        stopping = asyncio.ensure_future(there.server.stop())
        assert await idle.is_closed()
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection(HOST, there.server.port)
        gate.open.release()
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        await stopping


async def test_a_stop_gives_up_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonsched.frontend.http_server.STOP_GRACE_S", 0.01)
    gate = Gate()
    async with serving(Service(gate)) as there, connected(there.server.port) as client:
        client.ask("POST", INFER)
        await gate.reached.acquire()
        await there.server.stop()
        await gate.left.wait()


async def test_a_port_in_use_is_told_with_the_option_to_change() -> None:
    async with serving() as there:
        upstream = HttpUpstream(there.triton.address)
        port = there.server.port
        second = HttpServer(Service(), upstream, host=HOST, port=port, request_bytes_max=1)
        with pytest.raises(StartupError, match=f"{HOST}:{port}.*--http-port"):
            await second.start()
        await second.stop()


# -- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [STREAM, "/v2/models/m/versions/1/generate?x=1"])
async def test_events_are_passed_on_as_they_come(path: str) -> None:
    """The second is not even sent before the first was read here."""
    events = Events(b"data: 1\n\n", b"data: 2\n\n")
    async with serving(triton=events) as there, connected(there.server.port) as client:
        client.ask("POST", path, body=b"{}")
        reply = await client.head()
        assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream")
        for event in (*events.events, b""):
            events.more.release()
            assert await client.chunk() == event
        client.ask("POST", INFER)
        assert (await client.reply()).status == 200


async def test_an_answer_of_known_length_keeps_it() -> None:
    """An error before the first event is none: Triton announces its length."""
    async with serving(triton=fixed("400 Bad Request", body=b"why")) as there:
        reply = await there.ask("POST", STREAM)
        assert (reply.status, reply.body, reply.headers) == (400, b"why", {"content-length": "3"})


async def test_a_stream_that_breaks_off_breaks_off_here_too() -> None:
    """A client must not take the half for the whole."""
    events = Events(b"data: 1\n\n", breaks_off=True)
    async with serving(triton=events) as there, connected(there.server.port) as client:
        client.ask("POST", STREAM, body=b"{}")
        await client.head()
        events.more.release()
        assert await client.chunk() == b"data: 1\n\n"
        events.more.release()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.chunk()


async def test_a_stream_whose_client_left_is_drained() -> None:
    """Triton is not cut off: it can send the rest."""
    events = Events(b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n")
    async with serving(triton=events) as there:
        async with connected(there.server.port) as client:
            client.ask("POST", STREAM, body=b"{}")
            events.more.release()
            await client.head()
            await client.chunk()
        for _ in range(3):
            events.more.release()
        await events.ended.wait()
        assert not there.triton.lost.is_set()

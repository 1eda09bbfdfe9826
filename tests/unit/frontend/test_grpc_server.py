"""Triton's gRPC port as the sidecar serves it: methods, metadata, statuses, streams."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from tritonclient.grpc import service_pb2 as pb

from tests.unit.frontend.services import DATA, EXPLAIN, EXPLAINED, Service, always, merged
from tests.unit.frontend.wires import HOST, Call, RawGrpc, unused_address
from tests.unit.frontend.wires import serving as triton_serving
from tritonsched.backend.upstream_grpc import SERVICE, GrpcUpstream, end_to_end
from tritonsched.errors import QueueFull, StartupError
from tritonsched.frontend.grpc_h2_server import H2GrpcServer
from tritonsched.frontend.grpc_server import GrpcServer
from tritonsched.tensors import Answer, GrpcReply, InferCall

INFER = f"{SERVICE}ModelInfer"
STREAM = f"{SERVICE}ModelStreamInfer"
HEALTH = "/grpc.health.v1.Health/Check"
REQUEST = pb.ModelInferRequest(model_name="m", id="x").SerializeToString()
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs
LIMIT = 100_000


async def echo(call: Call, context: Any) -> bytes:
    await context.send_initial_metadata((("early", "1"),))
    context.set_trailing_metadata((("late-bin", b"\xff"),))
    return call.messages[0] + b"!"


async def double(_call: Call, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message * 2
    context.set_trailing_metadata((("late", "1"),))
    yield b"end"


class Setup:
    """A server on a free port, a client's channel to it, the service, the Triton behind."""

    def __init__(
        self,
        server: GrpcServer | H2GrpcServer,
        service: Service,
        triton: RawGrpc,
        channel: grpc.aio.Channel,
    ) -> None:
        self.server = server
        self.service = service
        self.triton = triton
        self.channel = channel

    def unary(self, method: str, message: bytes = REQUEST, **options: Any) -> Any:
        """A call of raw bytes."""
        return self.channel.unary_unary(method, None, None)(message, **options)

    def stream(self) -> Any:
        start: Any = self.channel.stream_stream(STREAM, None, None)
        return start(metadata=(("k", "v"),))

    async def error(self, method: str, message: bytes = REQUEST) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.unary(method, message)
        return caught.value


KIND: list[type[GrpcServer] | type[H2GrpcServer]] = [GrpcServer]


@pytest.fixture(autouse=True, params=[GrpcServer, H2GrpcServer])
def _kind(request: pytest.FixtureRequest) -> None:
    """Both implementations keep the same promises."""
    KIND[0] = request.param


@contextlib.asynccontextmanager
async def serving(
    service: Service | None = None, triton: RawGrpc | None = None, address: str = ""
) -> AsyncIterator[Setup]:
    service = service or Service()
    async with triton_serving(triton or RawGrpc(echo, double)) as there:
        upstream = GrpcUpstream(address or there.address)
        await upstream.start()
        server = KIND[0](service, upstream, host=HOST, port=0, request_bytes_max=LIMIT)
        await server.start()
        channel = grpc.aio.insecure_channel(f"{HOST}:{server.port}")
        try:
            yield Setup(server, service, there, channel)
        finally:
            await channel.close(None)
            await server.stop()
            await upstream.close()


def pairs(metadata: Any) -> dict[str, str | bytes]:
    return dict(tuple(pair) for pair in metadata)


# -- inference --------------------------------------------------------------------------------


async def test_an_inference_is_the_services_with_metadata_and_deadline() -> None:
    async with serving() as there:
        metadata = (("x-tritonsched-class", "gold"), ("trace-bin", b"\0\xff"))
        answer = await there.unary(INFER, metadata=metadata, timeout=60)
        (call,) = there.service.calls
        assert (call.model, call.raw, call.headers, call.slo) == ("m", REQUEST, metadata, "gold")
        # gRPC writes a long timeout coarsely, and rounds it up.
        assert 0 < (call.hints.grpc_remaining_ns or 0) <= 61_000_000_000
        response = pb.ModelInferResponse.FromString(answer)
        assert (response.id, list(response.raw_output_contents)) == ("x", [DATA])
        assert there.triton.calls == []


async def test_without_a_deadline_there_is_none() -> None:
    async with serving() as there:
        await there.unary(INFER)
        assert there.service.calls[0].hints.grpc_remaining_ns is None


async def test_tritons_answer_to_a_lone_call_is_passed_on_as_it_is() -> None:
    reply = GrpcReply("OK", "", b"\xff", (("early", "1"),), (("late", "2"),))
    async with serving(Service(always(reply))) as there:
        call = there.unary(INFER, b"\xff")
        assert await call == b"\xff"
        assert pairs(await call.initial_metadata())["early"] == "1"
        assert pairs(await call.trailing_metadata())["late"] == "2"


async def test_tritons_error_to_a_lone_call_is_passed_on_as_it_is() -> None:
    reply = GrpcReply("ALREADY_EXISTS", "its\nown wörds", b"", (), (("late", "2"),))
    async with serving(Service(always(reply))) as there:
        error = await there.error(INFER)
        assert error.code() is grpc.StatusCode.ALREADY_EXISTS
        assert error.details() == "its\nown wörds"
        assert pairs(error.trailing_metadata()) == {"late": "2"}


@pytest.mark.parametrize(
    "answer", [merged(explain=EXPLAIN), GrpcReply("OK", "", b"", explain=EXPLAIN)]
)
async def test_an_explained_answer_carries_the_explanation(answer: Answer) -> None:
    async with serving(Service(always(answer))) as there:
        call = there.unary(INFER)
        await call
        assert pairs(await call.trailing_metadata())["x-tritonsched-explain"] == EXPLAINED


async def test_an_explained_error_carries_the_explanation() -> None:
    reply = GrpcReply("INTERNAL", "why", b"", explain=EXPLAIN)
    async with serving(Service(always(reply))) as there:
        error = await there.error(INFER)
        assert pairs(error.trailing_metadata()) == {"x-tritonsched-explain": EXPLAINED}


async def test_a_refusal_has_status_reason_hint_and_retry_info() -> None:
    error = QueueFull("model 'm': 4096 requests wait", retry_after_ns=1_500_000_000)
    async with serving(Service(always(error))) as there:
        refused = await there.error(INFER)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details() == "model 'm': 4096 requests wait"
        trailers = pairs(refused.trailing_metadata())
        assert trailers["x-tritonsched-reason"] == "queue-full"
        assert trailers["retry-after-ms"] == "1500"
        packed = trailers["grpc-status-details-bin"]
        assert isinstance(packed, bytes)
        info = RetryInfo()
        assert Status.FromString(packed).details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() == 1500


async def test_a_fault_of_ours_is_a_status_and_the_next_call_is_served() -> None:
    answers = iter([ValueError("secret"), None])

    async def answer(_call: InferCall) -> Answer:
        if error := next(answers):
            raise error
        return merged()

    async with serving(Service(answer)) as there:
        error = await there.error(INFER)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in (error.details() or "")
        assert pairs(error.trailing_metadata()) == {"x-tritonsched-reason": "internal"}
        assert await there.unary(INFER)


async def test_a_message_over_the_limit_is_refused() -> None:
    async with serving() as there:
        error = await there.error(INFER, b"\0" * (LIMIT + 1))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert there.service.calls == []


class Gate:
    """A service that never answers, and hears when it is cancelled."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, _call: InferCall) -> Answer:
        self.reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        raise AssertionError


async def test_a_client_that_cancels_cancels_its_call() -> None:
    gate = Gate()
    async with serving(Service(gate)) as there:
        call = there.unary(INFER)
        sent = asyncio.ensure_future(call.code())
        await gate.reached.wait()
        call.cancel()
        await gate.left.wait()
        assert await sent is grpc.StatusCode.CANCELLED


# -- everything else --------------------------------------------------------------------------

FORWARDED = [
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "SystemSharedMemoryStatus", "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus", "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings",
]  # fmt: skip


@pytest.mark.parametrize("method", [f"{SERVICE}{name}" for name in FORWARDED] + [HEALTH])
async def test_a_control_call_is_tritons_as_bytes_both_ways(method: str) -> None:
    async with serving() as there:
        metadata = (("triton-grpc-protocol-key", "v"), ("trace-bin", b"\0"))
        call = there.unary(method, b"\xff", metadata=metadata)
        assert await call == b"\xff!"
        assert pairs(await call.initial_metadata())["early"] == "1"
        assert pairs(await call.trailing_metadata())["late-bin"] == b"\xff"
        (seen,) = there.triton.calls
        assert (seen.method, seen.messages) == (method, [b"\xff"])
        assert end_to_end(seen.metadata) == metadata
        assert there.service.said == []


def test_every_method_of_the_service_is_served() -> None:
    """A protocol that grows is noticed here."""
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    named = {method.name for method in service.methods}
    own = {"ModelInfer", "ModelStreamInfer", "RepositoryModelLoad", "RepositoryModelUnload"}
    assert named == {*FORWARDED, *own}


@pytest.mark.parametrize(
    "method",
    [f"{SERVICE}Nothing", "/grpc.health.v1.Health/Watch", "/no.such.Service/Method"],
)
async def test_an_unknown_method_is_unimplemented(method: str) -> None:
    async with serving() as there:
        assert (await there.error(method)).code() is grpc.StatusCode.UNIMPLEMENTED
        assert there.triton.calls == []


async def test_readiness_is_tritons_word_and_ours() -> None:
    async with serving() as there:
        there.service.ready = False
        ready = await there.unary(f"{SERVICE}ServerReady", b"")
        assert not pb.ServerReadyResponse.FromString(ready).ready
        assert await there.unary(HEALTH, b"") == b"\x08\x02"
        assert await there.unary(f"{SERVICE}ServerLive", b"") == b"!"


@pytest.mark.parametrize("name", ["RepositoryModelLoad", "RepositoryModelUnload"])
async def test_a_model_is_forgotten_before_and_after_triton_loads_or_unloads_it(name: str) -> None:
    service = Service()

    async def load(_call: Call, context: Any) -> bytes:
        service.said.append("triton")
        await context.abort(grpc.StatusCode.INTERNAL, "failed")
        raise AssertionError

    async with serving(service, RawGrpc(load)) as there:
        message = pb.RepositoryModelLoadRequest(model_name="m").SerializeToString()
        error = await there.error(f"{SERVICE}{name}", message)
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "failed")
        assert service.said == ["invalidate m", "triton", "invalidate "]


async def test_without_triton_a_forwarded_call_is_told_so() -> None:
    async with serving(address=await unused_address()) as there:
        error = await there.error(f"{SERVICE}ServerLive")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert pairs(error.trailing_metadata())["x-tritonsched-reason"] == "triton-unavailable"


async def test_a_port_in_use_is_told_with_the_option_to_change() -> None:
    async with serving() as there:
        upstream = GrpcUpstream(there.triton.address)
        port = there.server.port
        second = KIND[0](Service(), upstream, host=HOST, port=port, request_bytes_max=1)
        with pytest.raises(StartupError, match=f"{HOST}:{port}.*--grpc-port"):
            await second.start()

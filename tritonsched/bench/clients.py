"""Sending one request and learning how it ended. Rule: bodies are ready; a send allocates next to
nothing.

No request is ever cancelled and none has a client-side deadline: Triton 2.51 can crash on either
(server issues 7368, 8034), and a late answer must be seen to be counted.
"""

from typing import Any, Protocol

import aiohttp
import grpc
import grpc.aio
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.catalogue import ModelInfo, model_info
from tritonsched.backend.upstream_grpc import OPTIONS, SERVICE
from tritonsched.bench.payload import Inputs, Wording, grpc_message, http_body
from tritonsched.bench.plan import LoadClass

REASON = "x-tritonsched-reason"
OK = "ok"
CHANNELS = 2  # one connection's flow control is a bottleneck for images; more cost CPU


class TargetError(Exception):
    """The target does not answer, or not as a Triton does."""


class Client(Protocol):
    """One protocol's way to the target."""

    async def model(self, name: str) -> ModelInfo:
        """What the target says of the model. Raises TargetError."""

    def prepare(
        self, model: str, classes: tuple[LoadClass, ...], payloads: list[Inputs], wording: Wording
    ) -> None:
        """Build every body that will be sent."""

    async def send(self, load_class: int, payload: int) -> str:
        """`ok`, a refusal's reason, or the status of another failure. Never raises."""

    async def close(self) -> None: ...


class GrpcClient:
    """ModelInfer over grpc.aio with raw bytes."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._channels = [
            grpc.aio.insecure_channel(target, options=OPTIONS) for _ in range(CHANNELS)
        ]
        self._calls = [c.unary_unary(f"{SERVICE}ModelInfer", None, None) for c in self._channels]
        self._messages: list[list[bytes]] = []
        self._metadata: list[tuple[tuple[str, str], ...]] = []
        self._next = 0

    async def model(self, name: str) -> ModelInfo:
        ask = self._channels[0].unary_unary(f"{SERVICE}ModelConfig", None, None)
        try:
            reply = await ask(pb.ModelConfigRequest(name=name).SerializeToString())
        except grpc.aio.AioRpcError as error:
            raise TargetError(f"{self._target}: {error.details()}") from error
        return model_info(pb.ModelConfigResponse.FromString(reply).config, "")

    def prepare(
        self, model: str, classes: tuple[LoadClass, ...], payloads: list[Inputs], wording: Wording
    ) -> None:
        self._messages = [
            [grpc_message(model, made, wording.timeout_us(each)) for made in payloads]
            for each in classes
        ]
        self._metadata = [wording.headers(each) for each in classes]

    async def send(self, load_class: int, payload: int) -> str:
        self._next = (self._next + 1) % CHANNELS
        call = self._calls[self._next]
        try:
            await call(self._messages[load_class][payload], metadata=self._metadata[load_class])
        except grpc.aio.AioRpcError as error:
            trailers: Any = error.trailing_metadata()  # pairs, whatever the stubs say
            return str(dict(trailers).get(REASON, error.code().name.lower()))
        return OK

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)


class HttpClient:
    """`infer` over HTTP with binary tensors."""

    def __init__(self, target: str) -> None:
        self._target = target
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self._url = ""
        self._bodies: list[list[tuple[dict[str, str], bytes]]] = []

    async def model(self, name: str) -> ModelInfo:
        url = f"http://{self._target}/v2/models/{name}/config"
        try:
            async with self._session.get(url) as reply:
                if reply.status != 200:
                    raise TargetError(f"{self._target}: {(await reply.text())[:200]}")
                config = json_format.ParseDict(
                    await reply.json(), model_config_pb2.ModelConfig(), ignore_unknown_fields=True
                )
        except (aiohttp.ClientError, OSError, ValueError, json_format.ParseError) as error:
            raise TargetError(f"{self._target}: {error}") from error
        return model_info(config, "")

    def prepare(
        self, model: str, classes: tuple[LoadClass, ...], payloads: list[Inputs], wording: Wording
    ) -> None:
        self._url = f"http://{self._target}/v2/models/{model}/infer"
        self._bodies = [[self._body(each, made, wording) for made in payloads] for each in classes]

    @staticmethod
    def _body(
        load_class: LoadClass, made: Inputs, wording: Wording
    ) -> tuple[dict[str, str], bytes]:
        length, body = http_body(made, wording.timeout_us(load_class))
        headers = {"Inference-Header-Content-Length": str(length), "Accept-Encoding": "identity"}
        return headers | dict(wording.headers(load_class)), body

    async def send(self, load_class: int, payload: int) -> str:
        headers, body = self._bodies[load_class][payload]
        try:
            async with self._session.post(self._url, headers=headers, data=body) as reply:
                await reply.read()
                if reply.status == 200:
                    return OK
                return reply.headers.get(REASON, f"http-{reply.status}")
        except (aiohttp.ClientError, OSError):
            return "unavailable"

    async def close(self) -> None:
        await self._session.close()

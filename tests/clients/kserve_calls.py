"""What KServe's own clients see at one server, printed as JSON: a program of `.venv-clients`.

    .venv-clients/bin/python tests/clients/kserve_calls.py HTTP GRPC

Rule: every call is made, whatever the one before brought; what it raises is its result. It knows
the models of `tests/differential/models.py`, and nothing else of this repository: its environment
has none of it.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.protocol.infer_type import RequestedOutput

CROWD = 24  # requests at once: they share batches
ROW = np.array([[1.5, 2.0]], np.float32)
INTS = np.array([[5, 7]], np.int32)
TEXTS = np.array([["abc", "", "é"]], np.object_)
Call = Callable[[], Awaitable[Any]]


def tensor(name: str, values: Any, datatype: str, *, binary: bool = True) -> InferInput:
    made = InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def request(model: str, *inputs: InferInput, outputs: tuple[str, ...] = (), **more: Any) -> Any:
    """With an id: the client would make a new one for each call."""
    more.setdefault("request_id", "ours")
    wanted = [RequestedOutput(name, {"binary_data": True}) for name in outputs] or None
    return InferRequest(model, list(inputs), request_outputs=wanted, **more)


def plain(value: float = 1.5, *, binary: bool = True, **more: Any) -> Any:
    return request("num", tensor("IN", ROW + value, "FP32", binary=binary), **more)


def pair(*outputs: str) -> Any:
    inputs = tensor("A", INTS, "INT32"), tensor("B", INTS * 2, "INT32")
    return request("pair", *inputs, outputs=outputs)


REQUESTS: dict[str, Callable[[], Any]] = {
    "binary": plain,
    "JSON": lambda: plain(binary=False),
    "with an id": lambda: plain(request_id="é, mine"),
    "with parameters": lambda: plain(parameters={"a": 1, "b": "c", "d": True}),
    "of two inputs": pair,
    "of one output": lambda: pair("DIFF"),
    "of texts": lambda: request("text", tensor("IN", TEXTS, "BYTES")),
    "of texts in JSON": lambda: request("text", tensor("IN", TEXTS, "BYTES", binary=False)),
    "of two rows": lambda: request("num", tensor("IN", np.ones((2, 2), np.float32), "FP32")),
    "of too many rows": lambda: request("num", tensor("IN", np.ones((9, 1), np.float32), "FP32")),
    "of a wrong datatype": lambda: request("num", tensor("IN", INTS, "INT32")),
    "of a wrong name": lambda: request("num", tensor("INPUT", ROW, "FP32")),
    "of no model": lambda: request("nobody", tensor("IN", ROW, "FP32")),
    "that the model refuses": lambda: request("num", tensor("IN", ROW * 0 - 3, "FP32")),
    "of an ensemble": lambda: request("double", tensor("IN", ROW, "FP32")),
    "of a decoupled model": lambda: request("repeat", tensor("IN", ROW[0, :1], "FP32")),
    "of the latest version": lambda: request("ver", tensor("IN", ROW, "FP32")),
}
MODELS = ("num", "pair", "seq", "nobody")


def seen(answer: Any) -> Any:
    """An InferResponse, a message or a plain value, as JSON can hold it."""
    if hasattr(answer, "outputs") and hasattr(answer, "model_version"):
        parameters = sorted((name, str(value)) for name, value in (answer.parameters or {}).items())
        head = [answer.model_name, answer.model_version, answer.id, parameters]
        return head + [[o.name, o.datatype, o.shape, str(o.as_numpy())] for o in answer.outputs]
    return answer if isinstance(answer, bool) else str(answer)


async def outcome(call: Call, address: str) -> Any:
    """What a call brought or raised, without the address."""
    try:
        return seen(await call())
    except grpc.aio.AioRpcError as exc:
        return [exc.code().name, exc.details()]
    except Exception as exc:  # whatever it raises is the result
        return [type(exc).__name__, str(exc).replace(address, "HOST")]


def rest_calls(client: Any, address: str) -> dict[str, Call]:
    url = f"http://{address}"

    def infer(made: Callable[[], Any]) -> Call:
        return lambda: client.infer(url, (built := made()), model_name=built.model_name)

    calls: dict[str, Call] = {
        "live": lambda: client.is_server_live(url),
        "ready": lambda: client.is_server_ready(url),
    }
    for name in MODELS:
        calls[f"{name} ready"] = lambda name=name: client.is_model_ready(url, name)  # type: ignore[misc]
    return calls | {f"infer {name}": infer(made) for name, made in REQUESTS.items()}


def grpc_calls(client: Any, stub: Any) -> dict[str, Call]:
    def infer(made: Callable[[], Any]) -> Call:
        return lambda: client.infer(made())

    calls: dict[str, Call] = {
        "live": client.is_server_live,
        "ready": client.is_server_ready,
        "server metadata": lambda: stub.ServerMetadata(pb.ServerMetadataRequest()),
    }
    for name in MODELS:
        asked = pb.ModelMetadataRequest(name=name)
        calls[f"{name} ready"] = lambda name=name: client.is_model_ready(name)  # type: ignore[misc]
        calls[f"{name} metadata"] = lambda asked=asked: stub.ModelMetadata(asked)  # type: ignore[misc]
    return calls | {f"infer {name}": infer(made) for name, made in REQUESTS.items()}


async def crowd(infer: Callable[[Any], Awaitable[Any]], address: str) -> list[Any]:
    """Requests of different values at once."""
    asked = [plain(float(number), request_id=f"r{number}") for number in range(CROWD)]
    return await asyncio.gather(*(outcome(lambda a=a: infer(a), address) for a in asked))  # type: ignore[misc]


async def rest(address: str) -> dict[str, Any]:
    config = RESTConfig(protocol="v2", timeout=60)
    async with InferenceRESTClient(config) as client:
        calls = rest_calls(client, address)
        found = {name: await outcome(call, address) for name, call in calls.items()}
        url = f"http://{address}"
        found["a crowd"] = await crowd(lambda a: client.infer(url, a, model_name="num"), address)
    return found


async def over_grpc(address: str) -> dict[str, Any]:
    async with InferenceGRPCClient(address) as client, grpc.aio.insecure_channel(address) as opened:
        calls = grpc_calls(client, GRPCInferenceServiceStub(opened))
        found = {name: await outcome(call, address) for name, call in calls.items()}
        found["a crowd"] = await crowd(client.infer, address)
    return found


async def main(http: str, grpc_address: str) -> None:
    """Print what both clients see."""
    logging.disable()  # kserve logs each error that it raises
    found = {f"REST: {name}": value for name, value in (await rest(http)).items()}
    found |= {f"gRPC: {name}": value for name, value in (await over_grpc(grpc_address)).items()}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

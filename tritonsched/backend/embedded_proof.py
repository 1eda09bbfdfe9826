"""Is the Triton that answers there able to serve? Rule: by what it answers, never by what it says.

Source: Triton 2.51's python backend under numpy 2 reads wrong values and answers 0 bytes with the
right shape and status OK; readiness probes do not see it. Endpoints open when loading is done, so
the repository index is final at the first answer.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

PROOF_ROWS: Final = 3
PROOF_COLUMNS: Final = 257  # odd, so that a length rounded to a power of two shows
STATUS_OK: Final = b"HTTP/1.1 200"
CHANNEL_OPTIONS: Final = [
    # Triton needs seconds to load: grpc's default would wait up to that long between two tries.
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # the time an attempt has
    ("grpc.max_reconnect_backoff_ms", 200),
    # Another channel of this process to the same address must not share its connection.
    ("grpc.use_local_subchannel_pool", 1),
]


def proof_values() -> NDArray[np.float32]:
    """FP32 [rows, columns]; no value occurs twice, none is 0, all are exact."""
    quarters = np.arange(1, PROOF_ROWS * PROOF_COLUMNS + 1).reshape(PROOF_ROWS, PROOF_COLUMNS)
    return (quarters / 4).astype(np.float32)


def proof_request(model: str) -> Any:
    """The echo request, with its tensor as raw bytes."""
    values = proof_values()
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT", datatype="FP32", shape=values.shape)
    request.raw_input_contents.append(values.tobytes())
    return request


def fault_of(reply: Any) -> str:
    """What is wrong with an echo's answer; "" if nothing is.

    reply: ModelInferResponse.
    """
    values = proof_values()
    if len(reply.outputs) != 1 or tuple(reply.outputs[0].shape) != values.shape:
        shapes = [tuple(output.shape) for output in reply.outputs]
        return f"the answer has outputs of shape {shapes}, not one of {values.shape}"
    raw = b"".join(reply.raw_output_contents)
    if len(raw) != values.nbytes:
        return f"the answer has {len(raw)} bytes instead of {values.nbytes}"
    answered = np.frombuffer(raw, dtype=np.float32).reshape(values.shape)
    wrong = int(np.count_nonzero(answered != values))
    if wrong:
        return f"{wrong} of {values.size} values came back wrong"
    return ""


def numpy_trap(fault: str, environment: object) -> str:
    """The error text of a failed proof: what was seen, the likely cause, what to do."""
    return (
        f"Triton's python backend corrupts tensors: {fault}. It does so silently under numpy 2; "
        f"its environment {environment} must have numpy<2 (1.26.4) and come first in PATH. "
        "Make it anew with `make install`"
    )


async def wait_until_live(channel: grpc.aio.Channel) -> None:
    """Return at the first answer of a live server; the caller bounds the wait."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    await stub.ServerLive(service_pb2.ServerLiveRequest(), wait_for_ready=True)


async def failed_models(channel: grpc.aio.Channel) -> Mapping[str, str]:
    """Models of the repository that Triton could not load, each with Triton's reason."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    index = await stub.RepositoryIndex(service_pb2.RepositoryIndexRequest())
    return {
        model.name: model.reason or model.state
        for model in index.models
        if model.state not in ("READY", "") and model.reason != "unloaded"
    }


async def prove(channel: grpc.aio.Channel, model: str) -> str:
    """Send values through the echo model; what is wrong with what came back, "" if nothing."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        return fault_of(await stub.ModelInfer(proof_request(model)))
    except grpc.aio.AioRpcError as exc:
        return f"the echo model '{model}' failed ({exc.code().name}: {exc.details()})"


async def answers(address: str, path: str) -> bool:
    """Something at host:port answers GET path with 200. Never raises an OSError."""
    host, _, port = address.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return await reader.read(len(STATUS_OK)) == STATUS_OK
    except OSError:
        return False
    finally:
        writer.close()

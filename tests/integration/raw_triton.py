"""A bare gRPC client of Triton for tests: raw tensors in, raw tensors out, nothing hidden."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

Arrays = Mapping[str, NDArray[Any]]
DATATYPES = {"FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8}
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


def infer_request(model: str, inputs: Arrays) -> Any:
    """ModelInferRequest with raw contents, for all outputs of the model."""
    request = service_pb2.ModelInferRequest(model_name=model)
    names = {np.dtype(kind): name for name, kind in DATATYPES.items()}
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=names[array.dtype], shape=array.shape)
        request.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    return request


def outputs_of(reply: Any) -> dict[str, NDArray[Any]]:
    """The tensors of a ModelInferResponse by name."""
    return {
        output.name: np.frombuffer(raw, DATATYPES[output.datatype]).reshape(output.shape)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


class RawTriton:
    """Calls on one channel. `stub` is the generated one, for everything else."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def infer(self, model: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Raises grpc.aio.AioRpcError with Triton's own code and text."""
        return outputs_of(await self.stub.ModelInfer(infer_request(model, inputs)))

    async def model_states(self) -> dict[str, str]:
        """Of the whole repository index."""
        index = await self.stub.RepositoryIndex(service_pb2.RepositoryIndexRequest())
        return {model.name: model.state for model in index.models}


@asynccontextmanager
async def raw_client(grpc_address: str) -> AsyncIterator[RawTriton]:
    """A client for the time of the block."""
    options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(grpc_address, options=options) as channel:
        yield RawTriton(channel)

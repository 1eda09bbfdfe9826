"""Batches as gRPC messages, and answers checked. Rule: pure; nothing unchecked is handed on.

A tensor in shared memory is three parameters (region, offset, byte size) and has no entry in the
raw contents of a request. In an answer it has an empty entry and no parameters: nothing says that
it was written, and a Triton whose python backend found the wrong numpy answers OK with right
shapes and no bytes. So the place of an output ends in a mark beforehand, and an answer that still
has it is refused: nobody is handed what an earlier batch left there.

Source: KServe v2 gRPC protocol with Triton's system shared-memory extension; observed on 2.51.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from tritonsched.errors import MalformedAnswer
from tritonsched.tensors import (
    BatchCall,
    BatchInput,
    Buffer,
    ParameterValue,
    Tensor,
    byte_size,
)

REGION = "shared_memory_region"
OFFSET = "shared_memory_offset"
SIZE = "shared_memory_byte_size"


def parse(kind: Any, message: Buffer) -> Any:  # the generated messages have no stubs
    """The bytes as a message of that kind. Raises MalformedAnswer."""
    try:
        return kind.FromString(bytes(message))
    except DecodeError as error:
        raise MalformedAnswer(f"Triton's answer is not a {kind.__name__}") from error


def new_request(call: BatchCall) -> Any:  # pb.ModelInferRequest has no stubs
    """The request without tensors. No id: Triton puts ids into error texts, and members differ."""
    request = pb.ModelInferRequest(model_name=call.model, model_version=call.version)
    for key, value in call.parameters.items():
        _set_parameter(request.parameters[key], value)
    return request


def _set_parameter(parameter: Any, value: ParameterValue) -> None:
    match value:
        case bool():  # before int: True is one
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case str():
            parameter.string_param = value


def add_input_inline(request: Any, tensor: BatchInput) -> None:
    """The tensor's bytes in the message itself."""
    _add_input(request, tensor)
    request.raw_input_contents.append(tensor.joined())


def add_input_shared(
    request: Any, tensor: BatchInput, *, region: str, offset: int, size: int
) -> None:
    """Where in the region the tensor's bytes are."""
    _point(_add_input(request, tensor), region, offset, size)


def add_output_inline(request: Any, name: str) -> None:
    """Ask for an output's bytes in the answer itself."""
    request.outputs.add(name=name)


def add_output_shared(request: Any, name: str, *, region: str, offset: int, size: int) -> None:
    """Where in the region to write the output, of exactly `size` bytes."""
    _point(request.outputs.add(name=name), region, offset, size)


def _add_input(request: Any, tensor: BatchInput) -> Any:
    return request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def _point(tensor: Any, region: str, offset: int, size: int) -> None:
    tensor.parameters[REGION].string_param = region
    tensor.parameters[OFFSET].int64_param = offset
    tensor.parameters[SIZE].int64_param = size


def read_answer(
    response: Any, call: BatchCall, shared: Mapping[str, memoryview], mark: bytes
) -> tuple[Tensor, ...]:
    """The answer's outputs, in the answer's order.

    shared: where outputs in shared memory were to be written, by name; of exactly their size.
    mark: what stood at the end of each of these places before.
    Raises MalformedAnswer unless they are the outputs asked for, each with the batch's rows and
    with as many bytes as its shape says.
    """
    asked = sorted(output.name for output in call.outputs)
    answered = sorted(output.name for output in response.outputs)
    if answered != asked:
        raise MalformedAnswer(
            f"model '{call.model}' answered outputs {answered} where {asked} were asked for"
        )
    raw = response.raw_output_contents
    tensors = []
    for index, output in enumerate(response.outputs):
        data: Buffer = raw[index] if index < len(raw) else b""
        if not data and output.name in shared:
            data = shared[output.name]
            if data[-len(mark) :] == mark:
                raise MalformedAnswer(f"model '{call.model}' did not write '{output.name}'")
        tensors.append(_checked(output, data, call))
    return tuple(tensors)


def _checked(output: Any, data: Buffer, call: BatchCall) -> Tensor:
    what = f"model '{call.model}', output '{output.name}'"
    shape = tuple(output.shape)
    if not shape or shape[0] != call.rows:
        raise MalformedAnswer(f"{what}: shape {list(shape)} for a batch of {call.rows} rows")
    size = byte_size(output.datatype, shape)
    if size is not None and size != len(data):
        raise MalformedAnswer(
            f"{what}: {len(data)} bytes where {output.datatype} {list(shape)} has {size}"
        )
    return Tensor(output.name, output.datatype, shape, data)

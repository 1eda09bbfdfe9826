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

from tritonsched.backend.batch_call import BatchCall, BatchInput
from tritonsched.errors import MalformedAnswer
from tritonsched.tensors import Buffer, ParameterValue, Tensor, byte_size

ANSWERS_MAX = 1024  # remembered
ANSWER_BYTES_MAX = 4096  # longer ones are read each time
Shared = Mapping[str, memoryview]
_Read = tuple[str, str, tuple[Tensor, ...]]
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


class Answers:
    """Checks answers. mark: what stood at the end of each output's place in shared memory before.

    An answer without tensors' bytes is the same, batch after batch of as many rows: how it reads is
    remembered, and what was written is checked each time.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._known: dict[tuple[bytes, int, tuple[str, ...]], _Read] = {}

    def read(self, message: Buffer, call: BatchCall, shared: Shared, *, may_carry: bool) -> _Read:
        """The model, its version and the outputs, in the answer's order.

        shared: where outputs in shared memory were to be written, by name; of exactly their size.
        may_carry: outputs may be in the message itself, too.
        Raises MalformedAnswer unless they are the outputs asked for, each with the batch's rows and
        with as many bytes as its shape says.
        """
        raw = bytes(message)
        key = (raw, call.rows, tuple([output.name for output in call.outputs]))
        may_be_known = len(raw) <= ANSWER_BYTES_MAX and len(shared) == len(call.outputs)
        known = self._known.get(key) if may_be_known else None
        if known is not None:
            return self._again(known, call, shared)
        response = parse(pb.ModelInferResponse, raw)
        carries = any(response.raw_output_contents)
        if carries and not may_carry:
            raise MalformedAnswer(f"model '{call.model}' answered past the GPU's memory")
        tensors = self._tensors(response, call, shared)
        made = (response.model_name, response.model_version, tensors)
        if may_be_known and not carries:
            if len(self._known) >= ANSWERS_MAX:
                self._known.clear()
            bare = tuple([Tensor(t.name, t.datatype, t.shape, b"") for t in tensors])
            self._known[key] = (response.model_name, response.model_version, bare)
        return made

    def _again(self, known: _Read, call: BatchCall, shared: Shared) -> _Read:
        """The same words, and what was written this time."""
        model, version, bare = known
        tensors = []
        for output in bare:
            data = self._written(output.name, call, shared)
            _check_size(output.name, output.datatype, output.shape, data, call)
            tensors.append(Tensor(output.name, output.datatype, output.shape, data))
        return model, version, tuple(tensors)

    def _tensors(self, response: Any, call: BatchCall, shared: Shared) -> tuple[Tensor, ...]:
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
                data = self._written(output.name, call, shared)
            tensors.append(_checked(output, data, call))
        return tuple(tensors)

    def _written(self, name: str, call: BatchCall, shared: Shared) -> Buffer:
        data = shared[name]
        if data[-len(self._mark) :] == self._mark:
            raise MalformedAnswer(f"model '{call.model}' did not write '{name}'")
        return data


def _checked(output: Any, data: Buffer, call: BatchCall) -> Tensor:
    shape = tuple(output.shape)
    if not shape or shape[0] != call.rows:
        what = f"model '{call.model}', output '{output.name}'"
        raise MalformedAnswer(f"{what}: shape {list(shape)} for a batch of {call.rows} rows")
    _check_size(output.name, output.datatype, shape, data, call)
    return Tensor(output.name, output.datatype, shape, data)


def _check_size(
    name: str, datatype: str, shape: tuple[int, ...], data: Buffer, call: BatchCall
) -> None:
    size = byte_size(datatype, shape)
    if size is not None and size != len(data):
        what = f"model '{call.model}', output '{name}'"
        raise MalformedAnswer(
            f"{what}: {len(data)} bytes where {datatype} {list(shape)} has {size}"
        )

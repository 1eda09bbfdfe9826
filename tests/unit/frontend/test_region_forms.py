"""Places in shared-memory regions on either wire: read when plainly said, otherwise Triton's."""

import json
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tritonsched.frontend import grpc_codec, http_codec
from tritonsched.tensors import InferCall, MergedReply, ShmRef, Tensor

IN = ShmRef("in", 0, 16)
OUT = ShmRef("out", 64, 16)


def place(region: str, **more: Any) -> dict[str, Any]:
    return {"shared_memory_region": region, "shared_memory_byte_size": 16, **more}


def over_http(given: dict[str, Any], wanted: dict[str, Any]) -> InferCall:
    head = {
        "inputs": [{"name": "I", "datatype": "FP32", "shape": [1, 4], "parameters": given}],
        "outputs": [{"name": "O", "parameters": wanted}],
    }
    body = json.dumps(head).encode()
    return http_codec.decode(model="m", version="", path="/", headers=(), body=body, received_ns=0)


def over_grpc(given: dict[str, Any], wanted: dict[str, Any]) -> InferCall:
    request = pb.ModelInferRequest(model_name="m")
    tensors = (
        (request.inputs.add(name="I", datatype="FP32", shape=[1, 4]), given),
        (request.outputs.add(name="O"), wanted),
    )
    for tensor, parameters in tensors:
        for name, value in parameters.items():
            kind = "string_param" if isinstance(value, str) else "int64_param"
            setattr(tensor.parameters[name], kind, value)
    message = request.SerializeToString()
    return grpc_codec.decode(message, (), received_ns=0, remaining_ns=None)


@pytest.mark.parametrize("read", [over_http, over_grpc])
def test_a_plain_place_is_read(read: Any) -> None:
    call = read(place("in"), place("out", shared_memory_offset=64))
    assert call.lone_reason == ""
    assert call.inputs == (Tensor("I", "FP32", (1, 4), b"", IN),)
    assert call.output_refs == (("O", OUT),)
    assert call.refs == (IN, OUT)


@pytest.mark.parametrize("read", [over_http, over_grpc])
@pytest.mark.parametrize(
    "odd",
    [
        {"shared_memory_region": "r"},
        place("r", shared_memory_offset=-1),
        place("r", shared_memory_offset="0"),
        place("r", binary_data_size=16),
        place("r", classification=1),
    ],
)
def test_an_odd_place_goes_alone(read: Any, odd: dict[str, Any]) -> None:
    assert read(odd, place("out")).lone_reason == "input-form"
    assert read(place("in"), odd).lone_reason == "output-form"


def test_a_placed_output_is_an_entry_without_data() -> None:
    """As Triton 2.51 answers: no word of the region, and gRPC keeps the raw entry's index."""
    reply = MergedReply("m", "1", (Tensor("O", "FP32", (1, 4), b"", OUT),))
    call = over_http(place("in"), place("out"))
    headers, body = http_codec.encode(reply, call)
    assert headers == [("Content-Type", "application/json")]
    outputs = [{"name": "O", "datatype": "FP32", "shape": [1, 4]}]
    assert json.loads(bytes(body))["outputs"] == outputs
    answer = pb.ModelInferResponse.FromString(grpc_codec.encode(reply, call))
    assert list(answer.raw_output_contents) == [b""]
    assert not answer.outputs[0].parameters

"""KServe v2 over gRPC: what is plain is read, what is odd goes alone, and nothing ever raises."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc._utils import _get_inference_request

from tritonsched.frontend import grpc_codec
from tritonsched.frontend.grpc_codec import TENSORS_MAX, Metadata, decode, encode
from tritonsched.tensors import InferCall, MergedReply, Tensor, Wire

ROW = np.arange(4, dtype=np.float32)[np.newaxis]
DATA = ROW.tobytes()
Change = Callable[[Any], object]


def plain(*changes: Change) -> Any:
    """The plain form, changed."""
    made = pb.ModelInferRequest(model_name="m", model_version="1", id="x")
    made.inputs.add(name="IN", datatype="FP32", shape=[1, 4])
    made.raw_input_contents.append(DATA)
    for change in changes:
        change(made)
    return made


def read(message: bytes, *metadata: tuple[str, str | bytes], left_ns: int | None = None) -> Any:
    return decode(message, metadata, received_ns=7, remaining_ns=left_ns)


def request(*changes: Change) -> InferCall:
    call: InferCall = read(plain(*changes).SerializeToString())
    return call


def test_the_plain_form_is_read_whole_and_kept_as_it_came() -> None:
    message = plain(
        lambda r: r.outputs.add(name="OUT"),
        lambda r: r.outputs.add(name="AND"),
        lambda r: setattr(r.parameters["timeout"], "int64_param", 250),
        lambda r: setattr(r.parameters["a"], "int64_param", 1),
        lambda r: setattr(r.parameters["b"], "double_param", 1.0),
        lambda r: setattr(r.parameters["c"], "bool_param", True),
        lambda r: setattr(r.parameters["d"], "string_param", "1"),
    ).SerializeToString()
    metadata: Metadata = (
        ("x-request-deadline-ms", "30"),
        ("x-envoy-expected-rq-timeout-ms", "40"),
        ("x-tritonsched-class", "gold"),
        ("x-tritonsched-explain", "1"),
        ("trace-bin", b"\xff"),
    )
    call = read(message, *metadata, left_ns=5)
    assert call.lone_reason == ""
    assert (call.wire, call.model, call.version, call.id) == (Wire.GRPC, "m", "1", "x")
    assert call.inputs == (Tensor("IN", "FP32", (1, 4), DATA),)
    assert call.outputs == ("OUT", "AND")
    assert call.parameters == {"a": 1, "b": 1.0, "c": True, "d": "1"}
    assert {name: type(value) for name, value in call.parameters.items()} == {
        "a": int, "b": float, "c": bool, "d": str,
    }  # fmt: skip
    hints = call.hints
    assert (hints.timeout_us, hints.header_ms, hints.envoy_ms) == (250, "30", "40")
    assert hints.grpc_remaining_ns == 5
    assert (call.slo, call.explain, call.received_ns) == ("gold", True, 7)
    assert (call.raw, call.headers) == (message, metadata)


def test_tensors_follow_the_order_of_the_inputs() -> None:
    call = request(
        lambda r: r.inputs.add(name="A", datatype="UINT8", shape=[2]),
        lambda r: r.raw_input_contents.append(b"ab"),
    )
    assert [(t.name, bytes(t.data)) for t in call.inputs] == [("IN", DATA), ("A", b"ab")]


def test_what_the_stock_client_sends_is_plain() -> None:
    """tritonclient's own request builder. Its priority is an unsigned parameter: Triton's own."""
    tensor = triton.InferInput("IN", [1, 4], "FP32")
    tensor.set_data_from_numpy(ROW)
    given: dict[str, Any] = {
        "model_name": "m", "inputs": [tensor], "model_version": "", "request_id": "7",
        "outputs": [triton.InferRequestedOutput("OUT")], "sequence_id": 0,
        "sequence_start": False, "sequence_end": False, "priority": 0, "timeout": 9,
        "parameters": {"a": "b"},
    }  # fmt: skip
    call = read(_get_inference_request(**given).SerializeToString())
    assert (call.lone_reason, call.id, call.hints.timeout_us) == ("", "7", 9)
    assert (call.outputs, call.parameters) == (("OUT",), {"a": "b"})
    assert bytes(call.inputs[0].data) == DATA
    urgent = read(_get_inference_request(**(given | {"priority": 2})).SerializeToString())
    assert urgent.lone_reason == "parameter-form"


def extended(part: bytes) -> Change:
    """A member that this version of the protocol does not have, in any message."""

    def change(message: Any) -> None:
        message.MergeFromString(part)

    return change


NEW_FIELD = b"\xfa\x3f\x01x"
ODD: dict[str, tuple[Change, str]] = {
    "a new field": (extended(NEW_FIELD), "unknown-member"),
    "a new field of an input": (
        lambda r: r.inputs[0].MergeFromString(NEW_FIELD),
        "unknown-member",
    ),
    "a new field of an output": (
        lambda r: r.outputs.add(name="OUT").MergeFromString(NEW_FIELD),
        "unknown-member",
    ),
    "an id with a NUL": (lambda r: setattr(r, "id", "a\0b"), "id-form"),
    "typed contents": (lambda r: r.inputs[0].contents.fp32_contents.append(1.0), "typed-contents"),
    "empty typed contents": (lambda r: r.inputs[0].contents.SetInParent(), "typed-contents"),
    "shared memory": (
        lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "r"),
        "input-form",
    ),
    "no inputs": (lambda r: r.Clear(), "input-form"),
    "more inputs than data": (lambda r: r.inputs.add(name="B"), "input-form"),
    "more data than inputs": (lambda r: r.raw_input_contents.append(b""), "input-form"),
    "a classification": (
        lambda r: setattr(r.outputs.add(name="OUT").parameters["classification"], "int64_param", 3),
        "output-form",
    ),
    "an unsigned parameter": (
        lambda r: setattr(r.parameters["priority"], "uint64_param", 1),
        "parameter-form",
    ),
    "a parameter without value": (lambda r: r.parameters["a"].SetInParent(), "parameter-form"),
    "a parameter of Triton's own": (
        lambda r: setattr(r.parameters["triton_x"], "bool_param", True),
        "parameter-form",
    ),
    "what says something of streams, in another kind": (
        lambda r: setattr(r.parameters["triton_enable_empty_final_response"], "int64_param", 1),
        "parameter-form",
    ),
    "more outputs than are looked into": (
        lambda r: [r.outputs.add(name=str(n)) for n in range(TENSORS_MAX)],
        "tensor-count",
    ),
    "a timeout of text": (
        lambda r: setattr(r.parameters["timeout"], "string_param", "5"),
        "parameter-form",
    ),
    "a negative timeout": (
        lambda r: setattr(r.parameters["timeout"], "int64_param", -1),
        "parameter-form",
    ),
}


def test_what_says_something_of_streams_alone_is_no_reason_to_go_alone() -> None:
    """perf_analyzer sends it with every call."""
    name = "triton_enable_empty_final_response"
    call = request(lambda r: setattr(r.parameters[name], "bool_param", True))
    assert (call.lone_reason, call.parameters) == ("", request(lambda _: None).parameters)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_message_sends_the_call_alone(name: str) -> None:
    change, reason = ODD[name]
    call = request(change)
    assert (call.lone_reason, call.inputs, call.outputs, call.parameters) == (reason, (), (), {})
    assert call.raw == plain(change).SerializeToString()


@pytest.mark.parametrize(
    "message", [b"\xff" * 9, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", DATA]
)
def test_an_undecodable_message_goes_alone_without_a_name(message: bytes) -> None:
    """Text that is no UTF-8 is one, too."""
    call = read(message)
    assert (call.lone_reason, call.model, call.raw) == ("undecodable", "", message)


def test_load_metrics_are_tritons_to_send() -> None:
    call = read(plain().SerializeToString(), ("endpoint-load-metrics-format", "json"))
    assert call.lone_reason == "load-metrics"


def test_a_call_that_goes_alone_keeps_its_deadlines() -> None:
    message = plain(
        lambda r: r.raw_input_contents.append(b""),
        lambda r: setattr(r.parameters["timeout"], "int64_param", 250),
    ).SerializeToString()
    assert read(message, left_ns=9).hints.grpc_remaining_ns == 9
    assert read(message).hints.timeout_us == 250
    negative = plain(lambda r: setattr(r.parameters["timeout"], "int64_param", -1))
    assert read(negative.SerializeToString()).hints.timeout_us is None


def test_the_table_of_reasons_is_complete() -> None:
    """Each word of the module's table is produced by a test above, and no other."""
    lines = (grpc_codec.__doc__ or "").splitlines()
    told = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert {reason for _, reason in ODD.values()} | {"undecodable", "load-metrics"} == told


@given(st.binary(max_size=64), st.lists(st.tuples(st.text(), st.text() | st.binary())))
def test_no_message_and_no_metadata_makes_decode_raise(message: bytes, metadata: Any) -> None:
    call = read(message, *metadata)
    assert call.lone_reason
    assert call.raw == message


@given(st.data())
def test_no_damage_to_a_plain_message_makes_decode_raise(data: st.DataObject) -> None:
    """A byte changed anywhere: it is read or it goes alone, and the data is what came."""
    message = bytearray(plain().SerializeToString())
    place = data.draw(st.integers(0, len(message) - 1))
    message[place] = data.draw(st.integers(0, 255))
    call = read(bytes(message))
    assert call.lone_reason or len(call.inputs) == 1


def test_an_answer_carries_the_clients_own_id_and_all_outputs_raw() -> None:
    outputs = (Tensor("OUT", "FP32", (1, 4), memoryview(DATA)), Tensor("N", "BYTES", (1, 0), b""))
    message = encode(MergedReply("m", "3", outputs), request())
    answer = pb.ModelInferResponse.FromString(message)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "x")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("OUT", "FP32", [1, 4]),
        ("N", "BYTES", [1, 0]),
    ]
    assert list(answer.raw_output_contents) == [DATA, b""]
    assert not answer.parameters

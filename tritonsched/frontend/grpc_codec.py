"""KServe v2 over gRPC: a message to an InferCall, a merged answer to a message. Rule: pure, never
raises.

| lone reason      | what is odd                                                        |
|------------------|--------------------------------------------------------------------|
| `undecodable`    | the message is not a ModelInferRequest                             |
| `tensor-count`   | over TENSORS_MAX inputs, outputs, parameters: not looked into      |
| `unknown-member` | a field that this version of the protocol does not have            |
| `id-form`        | an id with a NUL, where Triton cuts it                             |
| `typed-contents` | tensors in the typed fields instead of raw_input_contents          |
| `input-form`     | an input with parameters but a region's, or not one raw each       |
| `output-form`    | an output with parameters but a region's (classification)          |
| `parameter-form` | a parameter of a kind or name that is Triton's own, or no timeout  |
| `load-metrics`   | the ORCA metadata asks for metadata of Triton's                    |
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import (  # type: ignore[import-not-found]  # not in the stubs
    UnknownFieldSet,
)
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.wire import OFFSET, REGION, SIZE
from tritonsched.frontend.status import VARIANT_PARAMETER
from tritonsched.proxy.named import ours
from tritonsched.tensors import (
    DeadlineHints,
    InferCall,
    MergedReply,
    ParameterValue,
    ShmRef,
    Tensor,
    Wire,
)

TENSORS_MAX = 1024  # a message of a MB may have a million, and to look at each takes seconds
_KINDS = frozenset({"bool_param", "int64_param", "double_param", "string_param"})
_STREAMS_ONLY = "triton_enable_empty_final_response"
"""Says something of streams alone; perf_analyzer sends it with every call."""

Metadata = tuple[tuple[str, str | bytes], ...]


def decode(
    message: bytes, metadata: Metadata, *, received_ns: int, remaining_ns: int | None
) -> InferCall:
    """The call, merge-clean or with the reason why it is not.

    remaining_ns: what is left of the client's gRPC deadline; None if it has none.
    """
    texts = {key: value for key, value in metadata if isinstance(value, str)}
    try:
        request = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        request = pb.ModelInferRequest()
        lone = "undecodable"
    else:
        lone = _lone_reason(request, texts)
    return InferCall(
        wire=Wire.GRPC,
        model=request.model_name,
        version=request.model_version,
        id=request.id,
        received_ns=received_ns,
        raw=message,
        headers=metadata,
        inputs=() if lone else _inputs(request),
        outputs=() if lone else tuple(output.name for output in request.outputs),
        parameters=_ours(request) if lone else _parameters(request),
        lone_reason=lone,
        hints=DeadlineHints(
            grpc_remaining_ns=remaining_ns,
            header_ms=texts.get("x-request-deadline-ms"),
            timeout_us=_timeout_us(request),
            envoy_ms=texts.get("x-envoy-expected-rq-timeout-ms"),
        ),
        slo=texts.get("x-tritonsched-class"),
        explain=texts.get("x-tritonsched-explain") == "1",
        output_refs=() if lone else _output_refs(request),
        reservation=texts.get("x-tritonsched-reservation"),
        tenant=texts.get("x-tritonsched-tenant"),
    )


def _lone_reason(request: Any, metadata: Mapping[str, str]) -> str:
    if "endpoint-load-metrics-format" in metadata:
        return "load-metrics"
    if len(request.inputs) + len(request.outputs) + len(request.parameters) > TENSORS_MAX:
        return "tensor-count"
    if "\0" in request.id:
        return "id-form"
    if _has_unknown_fields(request):
        return "unknown-member"
    for name, parameter in request.parameters.items():
        if not _is_plain(name, parameter):
            return "parameter-form"
    return _inputs_reason(request) or _outputs_reason(request)


def _inputs_reason(request: Any) -> str:
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            return "typed-contents"
        if tensor.parameters and not _has_plain_ref(tensor):
            return "input-form"
        if _has_unknown_fields(tensor):
            return "unknown-member"
    count = sum(not tensor.parameters for tensor in request.inputs)
    fits = request.inputs and count == len(request.raw_input_contents)
    return "" if fits else "input-form"


def _outputs_reason(request: Any) -> str:
    for output in request.outputs:
        if output.parameters and not _has_plain_ref(output):
            return "output-form"
        if _has_unknown_fields(output):
            return "unknown-member"
    return ""


def _has_plain_ref(tensor: Any) -> bool:
    """A place in a region, plainly said, and nothing else."""
    given = tensor.parameters
    if not {REGION, SIZE} <= given.keys() <= {REGION, OFFSET, SIZE}:
        return False
    kinds = {name: given[name].WhichOneof("parameter_choice") for name in given}
    if kinds.pop(REGION) != "string_param" or set(kinds.values()) != {"int64_param"}:
        return False
    return all(given[name].int64_param >= 0 for name in kinds)


def _ref(tensor: Any) -> ShmRef:
    given = tensor.parameters
    offset = given[OFFSET].int64_param if OFFSET in given else 0
    return ShmRef(given[REGION].string_param, offset, given[SIZE].int64_param)


def _has_unknown_fields(message: Any) -> bool:
    return len(UnknownFieldSet(message)) > 0


def _is_plain(name: str, parameter: Any) -> bool:
    kind = parameter.WhichOneof("parameter_choice")
    if name == "timeout":
        return bool(kind == "int64_param" and parameter.int64_param >= 0)
    if name == _STREAMS_ONLY:
        return bool(kind == "bool_param")
    return kind in _KINDS and not name.startswith("triton_")


def _inputs(request: Any) -> tuple[Tensor, ...]:
    """raw_input_contents stand in the order of the request's inputs; one in a region has none."""
    raws = iter(request.raw_input_contents)
    tensors = []
    for t in request.inputs:
        ref = _ref(t) if t.parameters else None
        data = next(raws) if ref is None else b""
        tensors.append(Tensor(t.name, t.datatype, tuple(t.shape), data, ref))
    return tuple(tensors)


def _output_refs(request: Any) -> tuple[tuple[str, ShmRef], ...]:
    return tuple([(output.name, _ref(output)) for output in request.outputs if output.parameters])


def _parameters(request: Any) -> dict[str, ParameterValue]:
    return {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice"))
        for name, parameter in request.parameters.items()
        if name not in ("timeout", _STREAMS_ONLY)
    }


def _ours(request: Any) -> dict[str, ParameterValue]:
    given = request.parameters.items()
    return ours({name: text.string_param for name, text in given if text.HasField("string_param")})


def _timeout_us(request: Any) -> int | None:
    """The v2 parameter `timeout`; negative or of any other kind it is Triton's to judge."""
    if "timeout" not in request.parameters:
        return None
    parameter = request.parameters["timeout"]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        return None
    return int(parameter.int64_param) if parameter.int64_param >= 0 else None


def encode(reply: MergedReply, call: InferCall) -> bytes:
    """The message of a merged answer, with the client's own id."""
    response = pb.ModelInferResponse(
        model_name=reply.model, model_version=reply.version, id=call.id
    )
    if reply.variant:
        response.parameters[VARIANT_PARAMETER].string_param = reply.variant
    for tensor in reply.outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(bytes(tensor.data))
    message: bytes = response.SerializeToString()
    return message

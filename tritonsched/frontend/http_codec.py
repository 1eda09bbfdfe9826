"""KServe v2 over HTTP: a body to an InferCall, a merged answer to a body. Rule: pure, and it never
raises.

Only the plain binary form is read for merging: a JSON head of known members, every input and output
binary. Whatever is odd is no error here: the call goes alone, as it came, and Triton words the
fault.

| lone reason      | what is odd                                                               |
|------------------|---------------------------------------------------------------------------|
| `compressed`     | Content-Encoding: the head is not readable as it is                       |
| `load-metrics`   | the ORCA header asks for a header of Triton's                             |
| `raw-binary`     | Inference-Header-Content-Length is 0: the body is the tensor              |
| `json-tensors`   | no binary tail: Triton prints and reads the numbers                       |
| `head-form`      | a head length or JSON that is not plain, or a member twice                |
| `unknown-member` | a member or parameter that merging does not know                          |
| `input-form`     | an input that is not name, datatype, shape and binary_data_size           |
| `output-form`    | an output that is not binary, or asks for a classification or a region    |
| `parameter-form` | a parameter that is not a plain value, or is Triton's own                 |
| `binary-size`    | the binary tail is not as long as the inputs say                          |
"""

import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from tritonsched.tensors import (
    Buffer,
    DeadlineHints,
    InferCall,
    MergedReply,
    ParameterValue,
    Tensor,
    Wire,
)

HEAD_LENGTH = "Inference-Header-Content-Length"
HEAD_BYTES_MAX = 64 * 1024  # larger heads carry tensors as text; they are Triton's to read
_INT64_MAX = (1 << 63) - 1
_TENSOR_MEMBERS = {"name", "datatype", "shape", "parameters"}


class _Odd(Exception):  # never leaves this file
    """Why the call goes alone."""


class _Form(NamedTuple):
    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, ParameterValue]


def decode(
    *,
    model: str,
    version: str,
    path: str,
    headers: tuple[tuple[str, str], ...],
    body: bytes,
    received_ns: int,
) -> InferCall:
    """The call, merge-clean or with the reason why it is not."""
    by_name = {name.lower(): value for name, value in headers}
    timeout_us: int | None = None
    form = _Form("", (), (), {})
    lone = ""
    try:
        head_length = _head_length(by_name, body)
        head = _parse(body[:head_length])
        timeout_us = _timeout_us(head)
        form = _form(head, memoryview(body)[head_length:])
    except _Odd as odd:
        lone = str(odd)
    return InferCall(
        wire=Wire.HTTP,
        model=model,
        version=version,
        id=form.id,
        received_ns=received_ns,
        raw=body,
        headers=headers,
        path=path,
        inputs=form.inputs,
        outputs=form.outputs,
        parameters=form.parameters,
        lone_reason=lone,
        hints=DeadlineHints(
            header_ms=by_name.get("x-request-deadline-ms"),
            timeout_us=timeout_us,
            envoy_ms=by_name.get("x-envoy-expected-rq-timeout-ms"),
        ),
        slo=by_name.get("x-tritonsched-class"),
        explain=by_name.get("x-tritonsched-explain") == "1",
    )


def _head_length(headers: Mapping[str, str], body: bytes) -> int:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise _Odd("compressed")
    if "endpoint-load-metrics-format" in headers:
        raise _Odd("load-metrics")
    text = headers.get(HEAD_LENGTH.lower())
    if text is None:
        if len(body) > HEAD_BYTES_MAX:
            raise _Odd("json-tensors")
        return len(body)
    if not (text.isascii() and text.isdigit()):
        raise _Odd("head-form")
    length = int(text)
    if length == 0:
        raise _Odd("raw-binary")
    if length > min(len(body), HEAD_BYTES_MAX):
        raise _Odd("head-form")
    return length


def _parse(head: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(head, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _Odd("head-form") from None
    if not isinstance(parsed, dict):
        raise _Odd("head-form")
    return parsed


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a member twice")
    return made


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _timeout_us(head: dict[str, Any]) -> int | None:
    """The v2 parameter `timeout`, also of a call that goes alone. Other forms are Triton's to
    judge.
    """
    parameters = head.get("parameters")
    value: Any = parameters.get("timeout") if isinstance(parameters, dict) else None
    return int(value) if _is_int(value) and value >= 0 else None


def _form(head: dict[str, Any], tail: memoryview) -> _Form:
    if not head.keys() <= {"id", "inputs", "outputs", "parameters"}:
        raise _Odd("unknown-member")
    call_id = head.get("id", "")
    if not isinstance(call_id, str) or "\0" in call_id:
        raise _Odd("head-form")
    parameters, all_binary = _parameters(head.get("parameters", {}))
    outputs = _outputs(head.get("outputs", []))
    if not outputs and not all_binary:
        raise _Odd("json-tensors")
    return _Form(call_id, _inputs(head.get("inputs"), tail), outputs, parameters)


def _parameters(given: Any) -> tuple[dict[str, ParameterValue], bool]:
    if not isinstance(given, dict):
        raise _Odd("parameter-form")
    parameters: dict[str, ParameterValue] = {}
    for name, value in given.items():
        plain = isinstance(value, (bool, str, float)) or _is_int(value)
        if not plain or name.startswith("triton_"):
            raise _Odd("parameter-form")
        if name == "timeout":
            if not (_is_int(value) and value >= 0):
                raise _Odd("parameter-form")
        elif name != "binary_data_output":
            parameters[name] = value
    all_binary = given.get("binary_data_output", False)
    if not isinstance(all_binary, bool):
        raise _Odd("parameter-form")
    return parameters, all_binary


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _INT64_MAX


def _outputs(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise _Odd("output-form")
    names = []
    for output in given:
        if not isinstance(output, dict) or not output.keys() <= {"name", "parameters"}:
            raise _Odd("output-form")
        if output.get("parameters") != {"binary_data": True} or not isinstance(
            output.get("name"), str
        ):
            raise _Odd("output-form")
        names.append(output["name"])
    return tuple(names)


def _inputs(given: Any, tail: memoryview) -> tuple[Tensor, ...]:
    """The inputs; their data follows the head in the request's own order."""
    if not isinstance(given, list) or not given:
        raise _Odd("input-form")
    tensors = []
    start = 0
    for tensor in given:
        if not isinstance(tensor, dict) or not tensor.keys() <= _TENSOR_MEMBERS:
            raise _Odd("json-tensors" if "data" in (tensor or ()) else "input-form")
        size = _binary_size(tensor)
        shape = tensor.get("shape")
        if not isinstance(shape, list) or not all(map(_is_int, shape)):
            raise _Odd("input-form")
        end = start + size
        if end > len(tail):
            raise _Odd("binary-size")
        tensors.append(Tensor(tensor["name"], tensor["datatype"], tuple(shape), tail[start:end]))
        start = end
    if start != len(tail):
        raise _Odd("binary-size")
    return tuple(tensors)


def _binary_size(tensor: dict[str, Any]) -> int:
    parameters = tensor.get("parameters")
    if not isinstance(parameters, dict) or parameters.keys() != {"binary_data_size"}:
        raise _Odd("input-form")
    size = parameters["binary_data_size"]
    named = isinstance(tensor.get("name"), str) and isinstance(tensor.get("datatype"), str)
    if not named or not _is_int(size) or size < 0:
        raise _Odd("input-form")
    return int(size)


def encode(reply: MergedReply, call: InferCall) -> tuple[list[tuple[str, str]], Buffer]:
    """Headers and body of a merged answer, as Triton writes them: all outputs binary."""
    head: dict[str, Any] = {"id": call.id} if call.id else {}
    head["model_name"] = reply.model
    head["model_version"] = reply.version
    head["outputs"] = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": len(tensor.data)},
        }
        for tensor in reply.outputs
    ]
    text = orjson.dumps(head)
    tail = [tensor.data for tensor in reply.outputs if len(tensor.data)]
    headers = [("Content-Type", "application/json")]
    if tail:
        headers = [("Content-Type", "application/octet-stream"), (HEAD_LENGTH, str(len(text)))]
    body = b"".join((text, *tail))
    coding = response_coding(_header(call, "accept-encoding"))
    if coding == "gzip":
        body = gzip.compress(body, mtime=0)
    elif coding == "deflate":
        body = zlib.compress(body)
    if coding != "identity":
        headers.append(("Content-Encoding", coding))
    return headers, body


def _header(call: InferCall, name: str) -> str:
    for key, value in call.headers:
        if key.lower() == name and isinstance(value, str):
            return value
    return ""


def response_coding(accept: str) -> str:
    """The coding Triton would answer with: highest q among the three it knows, first on ties."""
    best, best_q = "identity", 0.0
    for part in accept.split(","):
        coding, _, weight = part.strip().partition(";")
        coding = coding.strip()
        try:
            q = float(weight.strip().removeprefix("q=")) if weight else 1.0
        except ValueError:
            q = 1.0
        if coding in ("identity", "gzip", "deflate") and q > best_q:
            best, best_q = coding, q
    return best

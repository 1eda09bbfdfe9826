"""KServe v2 over HTTP: a body to an InferCall, a merged answer to a body. Rule: pure, and it never
raises.

Only the plain binary form is read for merging: a JSON head of known members, every input and output
binary or in a shared-memory region. Whatever is odd is no error here: the call goes alone, as it
came, and Triton words the fault.

| lone reason      | what is odd                                                               |
|------------------|---------------------------------------------------------------------------|
| `compressed`     | Content-Encoding: the head is not readable as it is                       |
| `load-metrics`   | the ORCA header asks for a header of Triton's                             |
| `raw-binary`     | Inference-Header-Content-Length is 0: the body is the tensor              |
| `json-tensors`   | no binary tail: Triton prints and reads the numbers                       |
| `head-form`      | a head length or JSON that is not plain, or a header or member twice      |
| `unknown-member` | a member or parameter that merging does not know                          |
| `input-form`     | an input that is not name, datatype, shape and binary_data_size or region |
| `output-form`    | an output that is neither binary nor in a region, or a classification     |
| `parameter-form` | a parameter that is not a plain value, or is Triton's own                 |
| `binary-size`    | the binary tail is not as long as the inputs say                          |
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from tritonsched.backend.wire import OFFSET, REGION, SIZE
from tritonsched.frontend.status import VARIANT_PARAMETER
from tritonsched.proxy.families import VARIANT
from tritonsched.proxy.named import ours
from tritonsched.tensors import (
    Buffer,
    DeadlineHints,
    InferCall,
    MergedReply,
    ParameterValue,
    ShmRef,
    Tensor,
    Wire,
)

HEAD_LENGTH = "Inference-Header-Content-Length"
HEAD_BYTES_MAX = 64 * 1024  # larger heads carry tensors as text; they are Triton's to read
HEAD_DIGITS_MAX = 10  # Triton's own arithmetic is 32 bits wide
FORM_BYTES_MAX = 4096  # longer heads are not worth remembering
FORMS_MAX = 1024  # heads remembered; a client that puts an id into each head only fills it up
_INT64_MAX = (1 << 63) - 1
_TENSOR_MEMBERS = {"name", "datatype", "shape", "parameters"}
_REF_MEMBERS = {REGION, OFFSET, SIZE}
_WEIGHT = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")  # what C's strtod reads
_ONE = _WEIGHT.match("1")
_SINGLE_HEADERS = ("inference-header-content-length", "content-encoding")


class _Odd(Exception):  # never leaves this file
    """Why the call goes alone."""


class _Spec(NamedTuple):
    """An input as the head declares it. size: bytes in the binary tail. ref: elsewhere instead."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    ref: ShmRef | None


class _Form(NamedTuple):
    """A head that was read. lone: what is odd about it; then the rest may be missing."""

    id: str = ""
    specs: tuple[_Spec, ...] = ()
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, ParameterValue] = MappingProxyType({})
    timeout_us: int | None = None
    lone: str = ""
    output_refs: tuple[tuple[str, ShmRef], ...] = ()


_NO_FORM = _Form()
_forms: dict[bytes, _Form] = {}
"""Heads read before: a steady client sends the same bytes again and again (performance study H)."""


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
    by_name = {name.lower(): value for name, value in reversed(headers)}  # the first one counts
    form = _NO_FORM
    inputs: tuple[Tensor, ...] = ()
    key: bytes | None = None
    try:
        if len(by_name) < len(headers):
            _refuse_twice(headers)
        head_length = _head_length(by_name, body)
        key = body[:head_length]
        form = _forms.get(key) or _remember(key)
        lone = form.lone
        if not lone:
            inputs = _tensors(form.specs, memoryview(body)[head_length:])
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
        inputs=inputs,
        outputs=form.outputs,
        parameters=form.parameters,
        lone_reason=lone,
        hints=DeadlineHints(
            header_ms=by_name.get("x-request-deadline-ms"),
            timeout_us=form.timeout_us,
            envoy_ms=by_name.get("x-envoy-expected-rq-timeout-ms"),
        ),
        slo=by_name.get("x-tritonsched-class"),
        explain=by_name.get("x-tritonsched-explain") == "1",
        form=key if key and not lone and len(key) <= FORM_BYTES_MAX else None,
        output_refs=form.output_refs,
        reservation=by_name.get("x-tritonsched-reservation"),
        tenant=by_name.get("x-tritonsched-tenant"),
    )


def _remember(head: bytes) -> _Form:
    form = _form(head)
    if len(head) <= FORM_BYTES_MAX:
        if len(_forms) >= FORMS_MAX:
            _forms.clear()
        _forms[head] = form
    return form


def _refuse_twice(headers: tuple[tuple[str, str], ...]) -> None:
    names = [name.lower() for name, _ in headers]
    if any(names.count(name) > 1 for name in _SINGLE_HEADERS):
        raise _Odd("head-form")


def _head_length(headers: Mapping[str, str], body: bytes) -> int:
    if headers.get("content-encoding", "identity") != "identity":
        raise _Odd("compressed")
    if "endpoint-load-metrics-format" in headers:
        raise _Odd("load-metrics")
    text = headers.get(HEAD_LENGTH.lower())
    if text is None:
        if len(body) > HEAD_BYTES_MAX:
            raise _Odd("json-tensors")
        return len(body)
    if not (text.isascii() and text.isdigit() and len(text) <= HEAD_DIGITS_MAX):
        raise _Odd("head-form")
    length = int(text)
    if length == 0:
        raise _Odd("raw-binary")
    if length > min(len(body), HEAD_BYTES_MAX):
        raise _Odd("head-form")
    return length


def _parse(head: bytes) -> dict[str, Any]:
    try:
        text = head.decode()  # json.loads would take UTF-16, a BOM and lone surrogates, too
        parsed = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(parsed, ensure_ascii=False).encode()  # half a surrogate pair has no UTF-8
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
    """The v2 parameter `timeout`, also of a lone call. Other forms are Triton's to judge."""
    parameters = head.get("parameters")
    value: Any = parameters.get("timeout") if isinstance(parameters, dict) else None
    return int(value) if _is_int(value) and value >= 0 else None


def _form(head: bytes) -> _Form:
    kept: dict[str, Any] = {}
    try:
        parsed = _parse(head)
        kept = {"timeout_us": _timeout_us(parsed), "parameters": ours(parsed.get("parameters"))}
        return _plain_form(parsed, kept["timeout_us"])
    except _Odd as odd:
        return _Form(lone=str(odd), **kept)


def _plain_form(head: dict[str, Any], timeout_us: int | None) -> _Form:
    if not head.keys() <= {"id", "inputs", "outputs", "parameters"}:
        raise _Odd("unknown-member")
    call_id = head.get("id", "")
    if not isinstance(call_id, str) or (call_id and min(call_id) < " "):  # each prints its own way
        raise _Odd("head-form")
    parameters, all_binary = _parameters(head.get("parameters", {}))
    outputs, refs = _outputs(head.get("outputs", []))
    if not outputs and not all_binary:
        raise _Odd("json-tensors")
    specs = _specs(head.get("inputs"))
    return _Form(call_id, specs, outputs, parameters, timeout_us, output_refs=refs)


def _parameters(given: Any) -> tuple[dict[str, ParameterValue], bool]:
    if not isinstance(given, dict):
        raise _Odd("parameter-form")
    parameters: dict[str, ParameterValue] = {}
    for name, value in given.items():
        if not _is_plain(value) or name.startswith("triton_"):
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


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # 1e400 reads as infinity here and is refused by Triton
    return isinstance(value, (bool, str)) or _is_int(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _INT64_MAX


def _outputs(given: Any) -> tuple[tuple[str, ...], tuple[tuple[str, ShmRef], ...]]:
    if not isinstance(given, list):
        raise _Odd("output-form")
    names = []
    refs = []
    for output in given:
        if not isinstance(output, dict) or not output.keys() <= {"name", "parameters"}:
            raise _Odd("output-form")
        name, parameters = output.get("name"), output.get("parameters")
        if not isinstance(name, str) or not isinstance(parameters, dict):
            raise _Odd("output-form")
        names.append(name)
        if REGION in parameters:
            refs.append((name, _ref(parameters, "output-form")))
        elif parameters.keys() != {"binary_data"} or parameters["binary_data"] is not True:
            raise _Odd("output-form")
    return tuple(names), tuple(refs)


def _ref(parameters: dict[str, Any], odd: str) -> ShmRef:
    """A place in a region and nothing else; clients say with it that it is not binary."""
    values = {name: value for name, value in parameters.items() if name != "binary_data"}
    if parameters.get("binary_data", False) is not False or not values.keys() <= _REF_MEMBERS:
        raise _Odd(odd)
    given: dict[str, Any] = {OFFSET: 0, SIZE: None, **values}
    region, offset, size = given[REGION], given[OFFSET], given[SIZE]
    if not isinstance(region, str) or not (_is_size(offset) and _is_size(size)):
        raise _Odd(odd)
    return ShmRef(region, offset, size)


def _is_size(value: Any) -> bool:
    return _is_int(value) and value >= 0


def _specs(given: Any) -> tuple[_Spec, ...]:
    if not isinstance(given, list) or not given:
        raise _Odd("input-form")
    specs = []
    for tensor in given:
        if not isinstance(tensor, dict):
            raise _Odd("input-form")
        if not tensor.keys() <= _TENSOR_MEMBERS:
            raise _Odd("json-tensors" if "data" in tensor else "unknown-member")
        size, ref = _place(tensor)
        shape = tensor.get("shape")
        if not isinstance(shape, list) or not all(map(_is_int, shape)):
            raise _Odd("input-form")
        specs.append(_Spec(tensor["name"], tensor["datatype"], tuple(shape), size, ref))
    return tuple(specs)


def _tensors(specs: tuple[_Spec, ...], tail: memoryview) -> tuple[Tensor, ...]:
    """The inputs; their data follows the head in the request's own order."""
    tensors = []
    start = 0
    for spec in specs:
        end = start + spec.size
        tensors.append(Tensor(spec.name, spec.datatype, spec.shape, tail[start:end], spec.ref))
        start = end
    if start != len(tail):
        raise _Odd("binary-size")
    return tuple(tensors)


def _place(tensor: dict[str, Any]) -> tuple[int, ShmRef | None]:
    """Bytes in the tail, or a place in a region."""
    parameters = tensor.get("parameters")
    named = isinstance(tensor.get("name"), str) and isinstance(tensor.get("datatype"), str)
    if not named or not isinstance(parameters, dict):
        raise _Odd("input-form")
    if REGION in parameters:
        return 0, _ref(parameters, "input-form")
    size: Any = parameters.get("binary_data_size")
    if parameters.keys() != {"binary_data_size"} or not _is_size(size):
        raise _Odd("input-form")
    return int(size), None


def encode(reply: MergedReply, call: InferCall) -> tuple[list[tuple[str, str]], Buffer]:
    """Headers and body of a merged answer, as Triton writes them: all outputs binary, those in a
    client's region without a word of it.
    """
    head: dict[str, Any] = {"id": call.id} if call.id else {}
    head["model_name"] = reply.model
    head["model_version"] = reply.version
    if reply.variant:
        head["parameters"] = {VARIANT_PARAMETER: reply.variant}
    head["outputs"] = [_entry(tensor) for tensor in reply.outputs]
    text = orjson.dumps(head)
    tail = [tensor.data for tensor in reply.outputs if len(tensor.data)]
    headers = [("Content-Type", "application/json")]
    if tail:
        headers = [("Content-Type", "application/octet-stream"), (HEAD_LENGTH, str(len(text)))]
    if reply.variant:
        headers.append((VARIANT, reply.variant))
    body = b"".join((text, *tail))
    coding = response_coding(_header(call, "accept-encoding"))
    if coding == "gzip":
        body = gzip.compress(body, mtime=0)
    elif coding == "deflate":
        body = zlib.compress(body)
    if coding != "identity":
        headers.append(("Content-Encoding", coding))
    return headers, body


def _entry(tensor: Tensor) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": tensor.shape,
    }
    if tensor.ref is None:
        entry["parameters"] = {"binary_data_size": len(tensor.data)}
    return entry


def _header(call: InferCall, name: str) -> str:
    for key, value in call.headers:
        if key.lower() == name and isinstance(value, str):
            return value
    return ""


def response_coding(accept: str) -> str:
    """The coding Triton would answer with: highest q among the three it knows, first on ties.

    Read as loosely as Triton does: only ";q=" gives a weight, which ends where the number does.
    """
    best, best_q = "identity", 0.0
    for part in accept.split(","):
        coding, marker, weight = part.lstrip(" ").partition(";q=")
        number = _WEIGHT.match(weight) if marker else _ONE
        q = float(number[0]) if number else 0.0
        if coding in ("identity", "gzip", "deflate") and q > best_q:
            best, best_q = coding, q
    return best

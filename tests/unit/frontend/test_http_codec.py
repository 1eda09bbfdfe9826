"""KServe v2 over HTTP: what is plain is read, what is odd goes alone, and nothing ever raises."""

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st

from tritonsched.frontend import http_codec
from tritonsched.frontend.http_codec import HEAD_BYTES_MAX, HEAD_LENGTH, decode, encode
from tritonsched.tensors import InferCall, MergedReply, Tensor, Wire

ROW = np.arange(4, dtype=np.float32)[np.newaxis]
DATA = ROW.tobytes()
Headers = tuple[tuple[str, str], ...]


def read(body: bytes, headers: Headers = ()) -> InferCall:
    path = "/v2/models/m/infer"
    return decode(model="m", version="1", path=path, headers=headers, body=body, received_ns=7)


def head(**changes: Any) -> dict[str, Any]:
    """The plain form; a change to None takes a member away."""
    made: dict[str, Any] = {
        "inputs": [tensor()],
        "parameters": {"binary_data_output": True},
    }
    made |= changes
    return {key: value for key, value in made.items() if value is not None}


def tensor(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "IN",
        "datatype": "FP32",
        "shape": [1, 4],
        "parameters": {"binary_data_size": len(DATA)},
    }
    made |= changes
    return {key: value for key, value in made.items() if value is not None}


def output(**parameters: Any) -> dict[str, Any]:
    return {"name": "OUT", "parameters": parameters}


def request(given: dict[str, Any] | bytes, *more: tuple[str, str], tail: bytes = DATA) -> InferCall:
    text = given if isinstance(given, bytes) else json.dumps(given).encode()
    return read(text + tail, ((HEAD_LENGTH, str(len(text))), *more))


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return head(parameters={"binary_data_output": True} | parameters)


def test_the_plain_form_is_read_whole_and_kept_as_it_came() -> None:
    call = request(
        head(id="x", parameters={"binary_data_output": True, "a": 1, "b": 1.0, "timeout": 250}),
        ("X-Request-Deadline-Ms", "30"),
        ("x-envoy-expected-rq-timeout-ms", "40"),
        ("x-tritonsched-class", "gold"),
        ("X-Tritonsched-Explain", "1"),
    )
    assert call.lone_reason == ""
    assert (call.wire, call.model, call.version, call.id) == (Wire.HTTP, "m", "1", "x")
    assert call.inputs == (Tensor("IN", "FP32", (1, 4), DATA),)
    assert call.outputs == ()
    assert list(call.parameters.items()) == [("a", 1), ("b", 1.0)]
    assert [type(value) for value in call.parameters.values()] == [int, float]
    hints = call.hints
    assert (hints.timeout_us, hints.header_ms, hints.envoy_ms) == (250, "30", "40")
    assert hints.grpc_remaining_ns is None
    assert (call.slo, call.explain, call.received_ns) == ("gold", True, 7)
    assert bytes(call.raw).endswith(DATA)
    assert call.headers[1] == ("X-Request-Deadline-Ms", "30")
    assert call.path == "/v2/models/m/infer"


def test_tensors_are_views_of_the_body_in_the_order_of_the_request() -> None:
    first = tensor(name="B", datatype="UINT8", shape=[2], parameters={"binary_data_size": 2})
    second = tensor(name="A", datatype="UINT8", shape=[3], parameters={"binary_data_size": 3})
    call = request(head(inputs=[first, second]), tail=b"abcde")
    assert [(t.name, bytes(t.data)) for t in call.inputs] == [("B", b"ab"), ("A", b"cde")]
    assert all(isinstance(t.data, memoryview) for t in call.inputs)


def test_a_head_is_told_as_the_form_if_it_is_plain_and_short_enough_to_keep() -> None:
    """Whoever remembers forms (proxy/service.py) holds no more than this by each."""
    text = json.dumps(head(id="x")).encode()
    assert request(text).form == text
    assert request(text, tail=DATA[:-1]).form is None
    room = http_codec.FORM_BYTES_MAX - len(json.dumps(head(id="")))
    assert request(head(id="x" * room)).form is not None
    long = request(head(id="x" * (room + 1)))
    assert (long.lone_reason, long.form) == ("", None)


def test_named_outputs_are_read_in_order() -> None:
    two = [{"name": name, "parameters": {"binary_data": True}} for name in ("B", "A")]
    call = request(head(outputs=two, parameters=None))
    assert (call.lone_reason, call.outputs) == ("", ("B", "A"))


def test_what_the_stock_client_sends_is_plain() -> None:
    """tritonclient's own request builder, with and without named outputs."""
    given = triton.InferInput("IN", [1, 4], "FP32")
    given.set_data_from_numpy(ROW)
    for outputs in (None, [triton.InferRequestedOutput("OUT")]):
        body, length = triton.InferenceServerClient.generate_request_body(
            [given], outputs=outputs, request_id="7", timeout=9, priority=2, parameters={"a": "b"}
        )
        call = read(bytes(body), ((HEAD_LENGTH, str(length)),))
        assert (call.lone_reason, call.id, call.hints.timeout_us) == ("", "7", 9)
        assert call.parameters == {"a": "b", "priority": 2}
        assert bytes(call.inputs[0].data) == DATA


PLAIN = json.dumps(head()).encode()
LENGTH = (HEAD_LENGTH, str(len(PLAIN)))
ODD_HEADERS: dict[str, tuple[Headers, str]] = {
    "gzip": ((LENGTH, ("Content-Encoding", "gzip")), "compressed"),
    "capitals": ((LENGTH, ("Content-Encoding", "Identity")), "compressed"),
    "no such coding": ((LENGTH, ("Content-Encoding", "")), "compressed"),
    "two codings": (
        (LENGTH, ("Content-Encoding", "identity"), ("content-encoding", "gzip")),
        "head-form",
    ),
    "orca": ((LENGTH, ("Endpoint-Load-Metrics-Format", "json")), "load-metrics"),
    "no head length": ((), "head-form"),
    "head length 0": (((HEAD_LENGTH, "0"),), "raw-binary"),
    "head length 00": (((HEAD_LENGTH, "00"),), "raw-binary"),
    "negative": (((HEAD_LENGTH, "-1"),), "head-form"),
    "a sign": (((HEAD_LENGTH, f"+{len(PLAIN)}"),), "head-form"),
    "words": (((HEAD_LENGTH, "all"),), "head-form"),
    "empty": (((HEAD_LENGTH, ""),), "head-form"),
    "other digits": (((HEAD_LENGTH, "\u0661\u0662"),), "head-form"),
    "superscript": (((HEAD_LENGTH, "\u00b2"),), "head-form"),
    "over the body": (((HEAD_LENGTH, str(len(PLAIN + DATA) + 1)),), "head-form"),
    "over all numbers": (((HEAD_LENGTH, "9" * 5_000),), "head-form"),
    "twice": ((LENGTH, (HEAD_LENGTH.lower(), "3")), "head-form"),
    "short of the head": (((HEAD_LENGTH, "12"),), "head-form"),
}


@pytest.mark.parametrize("name", ODD_HEADERS)
def test_an_odd_header_sends_the_call_alone(name: str) -> None:
    headers, reason = ODD_HEADERS[name]
    call = read(PLAIN + DATA, headers)
    assert (call.lone_reason, call.inputs, bytes(call.raw)) == (reason, (), PLAIN + DATA)


def test_other_headers_may_come_twice_and_identity_is_no_coding() -> None:
    call = request(head(), ("Cookie", "a"), ("Cookie", "b"), ("Content-Encoding", "identity"))
    assert call.lone_reason == ""


ODD_HEADS: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "no JSON": (b"{", "head-form"),
    "nothing but space": (b" ", "head-form"),
    "a list": (b"[]", "head-form"),
    "a byte order mark": (b"\xef\xbb\xbf" + PLAIN, "head-form"),
    "UTF-16": (json.dumps(head()).encode("utf-16"), "head-form"),
    "no UTF-8": (PLAIN.replace(b"IN", b"\xff\xfe"), "head-form"),
    "half a pair": (PLAIN.replace(b"IN", rb"\ud800"), "head-form"),
    "half a pair, raw": (PLAIN.replace(b"IN", b"\xed\xa0\x80"), "head-form"),
    "a member twice": (PLAIN.replace(b'{"inputs"', b'{"id": "", "id": "", "inputs"'), "head-form"),
    "an inner member twice": (PLAIN.replace(b'"name"', b'"name": "", "name"'), "head-form"),
    "NaN": (PLAIN.replace(b"true", b"NaN"), "head-form"),
    "nested without end": (b'{"a":' * 30_000, "head-form"),
    "digits without end": (b'{"id": ' + b"9" * 5_000 + b"}", "head-form"),
    "a number as id": (head(id=7), "head-form"),
    "a zero in the id": (head(id="a\0b"), "head-form"),
    "an unknown member": (head(extra=1), "unknown-member"),
    "an unknown member of an input": (head(inputs=[tensor(extra=1)]), "unknown-member"),
    "no inputs": (head(inputs=[]), "input-form"),
    "inputs missing": (head(inputs=None), "input-form"),
    "inputs no list": (head(inputs={}), "input-form"),
    "an input no object": (head(inputs=[5]), "input-form"),
    "an input that is true": (head(inputs=[True]), "input-form"),
    "an input without name": (head(inputs=[tensor(name=None)]), "input-form"),
    "an input's name a number": (head(inputs=[tensor(name=1)]), "input-form"),
    "an input without datatype": (head(inputs=[tensor(datatype=None)]), "input-form"),
    "an input without shape": (head(inputs=[tensor(shape=None)]), "input-form"),
    "a shape of floats": (head(inputs=[tensor(shape=[1.0, 4])]), "input-form"),
    "a shape of booleans": (head(inputs=[tensor(shape=[True, 4])]), "input-form"),
    "a shape beyond 64 bits": (head(inputs=[tensor(shape=[1 << 63])]), "input-form"),
    "parameters no object": (head(inputs=[tensor(parameters=[])]), "input-form"),
    "shared memory": (
        head(inputs=[tensor(parameters={"shared_memory_region": "r"})]),
        "input-form",
    ),
    "a negative size": (head(inputs=[tensor(parameters={"binary_data_size": -1})]), "input-form"),
    "a size of true": (head(inputs=[tensor(parameters={"binary_data_size": True})]), "input-form"),
    "numbers as text": (head(inputs=[tensor(data=[1.0], parameters=None)]), "json-tensors"),
    "an output as text": (head(parameters=None), "json-tensors"),
    "all outputs as text": (
        head(parameters={"binary_data_output": False}),
        "json-tensors",
    ),
    "outputs no list": (head(outputs={}), "output-form"),
    "an output no object": (head(outputs=["OUT"]), "output-form"),
    "an output of its default": (head(outputs=[{"name": "OUT"}]), "output-form"),
    "an output not binary": (head(outputs=[output(binary_data=False)]), "output-form"),
    "an output nearly binary": (head(outputs=[output(binary_data=1)]), "output-form"),
    "an output's name a number": (
        head(outputs=[{"name": 1, "parameters": {"binary_data": True}}]),
        "output-form",
    ),
    "an unknown member of an output": (
        head(outputs=[output(binary_data=True) | {"extra": 1}]),
        "output-form",
    ),
    "a classification": (
        head(outputs=[output(binary_data=True, classification=3)]),
        "output-form",
    ),
    "an output in shared memory": (
        head(outputs=[output(shared_memory_region="r")]),
        "output-form",
    ),
    "request parameters no object": (head(parameters=[]), "parameter-form"),
    "a list as parameter": (with_parameters(a=[1]), "parameter-form"),
    "null as parameter": (with_parameters(a=None), "parameter-form"),
    "a parameter beyond 64 bits": (with_parameters(a=1 << 64), "parameter-form"),
    "an infinite parameter": (PLAIN.replace(b"true", b'true, "a": 1e400'), "parameter-form"),
    "a parameter of Triton's own": (with_parameters(triton_x=1), "parameter-form"),
    "a negative timeout": (with_parameters(timeout=-1), "parameter-form"),
    "a timeout of text": (with_parameters(timeout="5"), "parameter-form"),
    "binary_data_output of text": (head(parameters={"binary_data_output": "1"}), "parameter-form"),
}


@pytest.mark.parametrize("name", ODD_HEADS)
def test_an_odd_head_sends_the_call_alone(name: str) -> None:
    given, reason = ODD_HEADS[name]
    call = request(given)
    assert (call.lone_reason, call.inputs, call.parameters) == (reason, (), {})


@pytest.mark.parametrize("tail", [b"", DATA[:-1], DATA + b"\0"])
def test_a_tail_that_is_not_as_long_as_the_inputs_say_sends_the_call_alone(tail: bytes) -> None:
    assert request(head(), tail=tail).lone_reason == "binary-size"


def test_a_head_over_its_bound_is_not_read() -> None:
    """Neither as JSON tensors nor as a head with a length; Triton reads it."""
    large = json.dumps(head(id="x" * HEAD_BYTES_MAX)).encode()
    assert request(large).lone_reason == "head-form"
    assert read(large).lone_reason == "json-tensors"


def test_escapes_that_are_whole_are_read() -> None:
    call = request(json.dumps(head(id="\U0001f600")).encode())
    assert (call.lone_reason, call.id) == ("", "\U0001f600")


def test_a_call_that_goes_alone_keeps_its_deadline() -> None:
    """The v2 parameter counts as soon as the head can be read, the headers always."""
    text = json.dumps({"inputs": [], "parameters": {"timeout": 250}}).encode()
    assert (read(text).lone_reason, read(text).hints.timeout_us) == ("json-tensors", 250)
    call = read(b"\xff", (("x-request-deadline-ms", "5"),))
    assert (call.lone_reason, call.hints.header_ms) == ("head-form", "5")


def test_the_first_of_two_deadline_headers_counts() -> None:
    call = request(head(), ("x-request-deadline-ms", "1"), ("X-Request-Deadline-Ms", "2"))
    assert call.hints.header_ms == "1"


def test_the_table_of_reasons_is_complete() -> None:
    """Each word of the module's table is produced by a test above, and no other."""
    lines = (http_codec.__doc__ or "").splitlines()
    told = {line.split("`")[1] for line in lines if line.startswith("| `")}
    made = {reason for _, reason in (*ODD_HEADERS.values(), *ODD_HEADS.values())}
    assert made | {"binary-size"} == told


MEMBERS = (
    "id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data",
    "binary_data", "binary_data_size", "binary_data_output", "timeout",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(MEMBERS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
HEADER_NAMES = st.sampled_from([HEAD_LENGTH, "Content-Encoding", "x-request-deadline-ms"])
HEADER = st.tuples(HEADER_NAMES | st.text(), st.integers(-9, 200).map(str) | st.text(max_size=8))


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads what another one left."""
    monkeypatch.setattr(http_codec, "_forms", {})


def test_a_head_is_read_once_and_remembered_without_its_data() -> None:
    """The same bytes again give the same form with the data of their own body."""
    first, second = request(head(id="x")), request(head(id="x"), tail=b"\1" * 16)
    assert first.parameters is second.parameters
    assert (first.id, second.id, bytes(second.inputs[0].data)) == ("x", "x", b"\1" * 16)
    assert first.form == second.form


def test_heads_remembered_are_bounded() -> None:
    for number in range(http_codec.FORMS_MAX + 3):
        assert request(head(id=str(number))).id == str(number)
    request(head(id="x" * http_codec.FORM_BYTES_MAX))
    assert len(http_codec._forms) == 3


@given(st.binary(max_size=64), st.lists(HEADER, max_size=4))
def test_no_body_and_no_header_makes_decode_raise(body: bytes, headers: list[Any]) -> None:
    call = read(body, tuple(headers))
    assert call.lone_reason
    assert bytes(call.raw) == body


@given(JSON, st.binary(max_size=8))
def test_no_json_makes_decode_raise_and_what_is_read_is_consistent(given: Any, tail: bytes) -> None:
    call = request(json.dumps(given).encode(), tail=tail)
    assert call.lone_reason or sum(len(t.data) for t in call.inputs) == len(tail)


# -- answers ----------------------------------------------------------------------------------

OUT = Tensor("OUT", "FP32", (1, 4), DATA)
REPLY = MergedReply("m", "3", (OUT, Tensor("N", "UINT8", (1, 0), b"")))


def test_an_answer_has_tritons_members_in_tritons_order() -> None:
    headers, body = encode(REPLY, request(head(id="x")))
    text = (
        b'{"id":"x","model_name":"m","model_version":"3","outputs":['
        b'{"name":"OUT","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}},'
        b'{"name":"N","datatype":"UINT8","shape":[1,0],"parameters":{"binary_data_size":0}}]}'
    )
    assert body == text + DATA
    assert headers == [
        ("Content-Type", "application/octet-stream"),
        (HEAD_LENGTH, str(len(text))),
    ]


def test_an_answer_without_id_has_none_and_without_bytes_is_plain_json() -> None:
    """Triton sends no head length when there is no tail."""
    reply = MergedReply("m", "3", (Tensor("N", "UINT8", (1, 0), b""),))
    headers, body = encode(reply, request(head()))
    assert bytes(body).startswith(b'{"model_name":"m"')
    assert headers == [("Content-Type", "application/json")]


def test_the_stock_client_reads_the_answer() -> None:
    headers, body = encode(REPLY, request(head(id="x")))
    length = int(dict(headers)[HEAD_LENGTH])
    result = triton.InferenceServerClient.parse_response_body(bytes(body), header_length=length)
    np.testing.assert_array_equal(result.as_numpy("OUT"), ROW)
    assert result.get_response()["id"] == "x"


@pytest.mark.parametrize(
    ("coding", "undo"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_an_answer_is_compressed_whole_when_the_client_prefers_it(coding: str, undo: Any) -> None:
    plain_headers, plain = encode(REPLY, request(head()))
    headers, body = encode(REPLY, request(head(), ("accept-encoding", coding)))
    assert undo(bytes(body)) == plain
    assert headers == [*plain_headers, ("Content-Encoding", coding)]


CODINGS = {
    "": "identity",
    "gzip, deflate": "gzip",
    "deflate, gzip": "deflate",
    "identity, gzip": "identity",
    "gzip;q=0.5, deflate;q=0.8": "deflate",
    "gzip; q=0.5, deflate ;q=1": "identity",
    "gzip;q=0": "identity",
    "br, *, GZIP": "identity",
    "gzip;q=nan": "identity",
    ";;,,;q=": "identity",
}


@pytest.mark.parametrize("accept", CODINGS)
def test_the_coding_is_the_best_of_the_three_that_triton_knows(accept: str) -> None:
    assert http_codec.response_coding(accept) == CODINGS[accept]

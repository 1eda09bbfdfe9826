"""What is seen of calls whose form was not read: at least what Triton sees."""

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.unit.proxy.calls import call
from tritonsched.proxy import asked
from tritonsched.proxy.asked import (
    ANY,
    DEPTH_FREE,
    Asked,
    HttpAsked,
    asked_of,
    depth_of,
    files_in,
    offsets_in,
)
from tritonsched.tensors import Wire

HUGE = {"name": "I", "datatype": "FP32", "shape": [1, 1 << 40], "data": [1]}
PLACED = {"name": "I", "shape": [1 << 40], "parameters": {"shared_memory_region": "r"}}
FEW = {"name": "J", "datatype": "FP32", "shape": [1], "data": [1]}


def read(*, outputs: Any = (), **more: Any) -> HttpAsked:
    return HttpAsked(json.dumps({"outputs": list(outputs), **more}).encode())


def classes(name: str, count: int = 1) -> dict[str, Any]:
    return {"name": name, "parameters": {"classification": count}}


def message(**parameters: Any) -> Asked:
    """A gRPC call with one output that has these."""
    request = pb.ModelInferRequest(model_name="m")
    output = request.outputs.add(name="O")
    for name, value in parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(output.parameters[name], kind, value)
    return asked_of(call(raw=request.SerializeToString()))


def escaped(text: str) -> bytes:
    """Each letter as an escape of JSON."""
    return "".join(f"\\u{ord(letter):04X}" for letter in text).encode()


def test_classes_are_those_of_the_outputs_that_ask() -> None:
    found = read(outputs=[classes("A"), classes("B", 0), {"name": "C"}, {"name": "D", "x": 1}, 5])
    assert found.has_classes()
    assert found.classes() == {"A"}
    assert read(outputs=[{"name": "C"}]).classes() == frozenset()
    assert message(classification=3).classes() == {"O"}
    assert not message().has_classes()


def test_a_text_of_that_name_asks_for_nothing() -> None:
    said = HttpAsked(b'{"a":"classification","b":"say \\"classification\\": 1"}')
    assert not said.has_classes()


def test_of_two_members_the_first_counts_as_with_triton() -> None:
    twice = b'{"outputs":[{"name":"A","parameters":{"classification":1}}],"outputs":[]}'
    assert HttpAsked(twice).classes() == {"A"}


@pytest.mark.parametrize("text", [b'{"classification":1', b'{"classification":' + b"[" * 9999])
def test_what_cannot_be_parsed_may_ask_for_all(text: bytes) -> None:
    assert HttpAsked(text).classes() == {ANY}


def test_what_is_long_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "PARSED_BYTES_MAX", 10)
    assert read(outputs=[classes("A")]).classes() == {ANY}
    assert read(inputs=[HUGE]).is_oversized()


@pytest.mark.parametrize("lists", [{"outputs": 5}, {"outputs": ["A"]}])
def test_outputs_of_other_forms_ask_for_nothing(lists: dict[str, Any]) -> None:
    text = json.dumps({"classification": 1, **lists}).encode()
    assert HttpAsked(text).classes() == frozenset()
    assert HttpAsked(b'["classification":').classes() == {ANY}
    assert HttpAsked(b'[{"classification":1}]').classes() == frozenset()


def test_a_shape_without_data_for_it_is_oversized() -> None:
    assert read(inputs=[HUGE]).is_oversized()
    assert read(inputs=[FEW, HUGE]).is_oversized()
    assert not read(inputs=[FEW]).is_oversized()
    assert not read(inputs=[PLACED]).is_oversized()
    assert not read(inputs=[PLACED, FEW]).is_oversized()
    assert not read(inputs=[{**HUGE, "datatype": "BYTES"}]).is_oversized()
    assert HttpAsked(json.dumps({"inputs": [HUGE]}).encode()[:-1]).is_oversized()


def test_a_shape_without_elements_is_seen() -> None:
    assert read(inputs=[{**FEW, "shape": [1, 0]}]).has_empty_json()
    assert not read(inputs=[FEW, {**FEW, "shape": [10]}]).has_empty_json()


def test_regions_and_places_are_seen_on_both_protocols() -> None:
    place = {"shared_memory_region": "r", "shared_memory_offset": 8}
    over_http = read(inputs=[{"name": "I", "parameters": place}])
    assert over_http.regions() == message(**place).regions() == {"r"}
    assert not over_http.places_wrap()
    assert not message(**place).places_wrap()
    assert message().regions() == frozenset()
    assert not message().places_wrap()
    for number in (1 << 62, (1 << 64) - 8):
        assert read(x={"shared_memory_offset": number}).places_wrap()
    assert message(shared_memory_region="r", shared_memory_byte_size=-4080).places_wrap()
    assert message(shared_memory_region="r", shared_memory_offset=1 << 62).places_wrap()


def test_names_end_at_a_nul_as_with_triton() -> None:
    assert read(outputs=[classes("A\0B")]).classes() == {"A"}
    assert read(x={"shared_memory_region": "r\0s"}).regions() == {"r"}
    assert message(shared_memory_region="r\0s").regions() == {"r"}


def test_grpc_has_no_json_and_what_is_no_message_asks_for_nothing() -> None:
    found = asked_of(call(raw=b"\xffclassification shared_memory_region"))
    assert (found.classes(), found.regions()) == (frozenset(), frozenset())
    assert not any((found.is_oversized(), found.has_empty_json(), found.depth(), found.unread))


@given(st.sampled_from(["a", "b c", "é", 'q"', "back\\slash"]), st.booleans())
def test_escaped_letters_hide_nothing(region: str, is_escaped: bool) -> None:
    key = escaped("shared_memory_region") if is_escaped else b"shared_memory_region"
    name = json.dumps(region).encode()
    assert HttpAsked(b'{"%b" : %b}' % (key, name)).regions() == {region}


def test_a_name_that_is_no_json_is_taken_as_it_is() -> None:
    assert HttpAsked(b'{"shared_memory_region":"\\x"}').regions() == {"\\x"}


def test_members_without_end_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "MEMBERS_MAX", 10)
    assert not HttpAsked(b'"shape":[1],' * 10).unread
    assert HttpAsked(b'"shape":[1],' * 11).unread
    assert HttpAsked(b'"shape"' * 11).unread
    monkeypatch.setattr(asked, "ESCAPED_BYTES_MAX", 100)
    assert HttpAsked(b'"\\u0073hape":[1]' + b" " * 100).unread


DEEP = 2 * DEPTH_FREE


@given(st.integers(1, DEEP), st.sampled_from([b"[]", b"{}"]))
def test_depth_is_that_of_the_deepest_bracket(depth: int, pair: bytes) -> None:
    text = b'{"a":"[[\\"[[","b":' + pair[:1] * depth + pair[1:] * depth + b"}"
    assert depth_of(text) in ((depth + 1,) if depth > DEPTH_FREE else (0, depth + 1))


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert depth_of(b"[" + b"[1]," * DEEP + b"[1]]") == 2
    assert depth_of(b'"' + b"[" * DEEP + b'"') == 0
    assert HttpAsked(b"[" * DEEP).depth() == DEEP


def http(body: bytes, *headers: tuple[str, str]) -> HttpAsked:
    found = asked_of(call(wire=Wire.HTTP, raw=body, headers=headers))
    assert isinstance(found, HttpAsked)
    return found


TEXT = b'{"classification":1}'
LENGTH = "Inference-Header-Content-Length"


def test_json_ends_where_its_length_says() -> None:
    assert http(TEXT).has_classes()
    assert http(b"{}" + TEXT, ("x", "y")).has_classes()
    assert not http(b"{}" + TEXT, (LENGTH, "2")).has_classes()
    assert not http(TEXT, (LENGTH, "0")).has_classes()
    assert http(TEXT, (LENGTH, "two")).has_classes()


def test_compressed_json_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    coded = ("Content-Encoding", "gzip")
    assert http(gzip.compress(TEXT), coded).has_classes()
    assert not http(gzip.compress(b"{}" + TEXT), coded, (LENGTH, "2")).has_classes()
    assert not http(b"no gzip" + TEXT, coded).has_classes()
    monkeypatch.setattr(asked, "INFLATED_BYTES_MAX", 10)
    assert http(gzip.compress(TEXT), coded).unread
    assert not http(gzip.compress(b"{}" + TEXT), coded, (LENGTH, "2")).unread


def test_files_and_offsets_are_found_however_they_are_written() -> None:
    body = b'{"parameters":{"config":"{}","%b:1/m\\u002epy":"AA==","file:x":"AA=="}}'
    assert files_in(body % escaped("file")) == ("1/m.py", "x")
    assert files_in(b'{"parameters":{"config":"file:x"}}') == ()
    assert offsets_in(b'{"key":"/a","offset" : 0,"byte_size":8}') == (0,)
    assert offsets_in(b'{"%b":4096,"offset":0}' % escaped("offset")) == (4096, 0)

"""Which calls may share a batch: one test a rule."""

from dataclasses import replace

import pytest

from tests.unit.proxy.calls import ECHO, call, tensor
from tritonsched.backend.catalogue import TensorInfo
from tritonsched.proxy import mergeable
from tritonsched.proxy.mergeable import Signatures, lone_reason, merge_key
from tritonsched.tensors import InferCall, Tensor

TEXT = replace(ECHO, inputs={"INPUT": TensorInfo("INPUT", "BYTES", (1,))})


def text_tensor(*elements: bytes, rows: int | None = None) -> Tensor:
    data = b"".join(len(e).to_bytes(4, "little") + e for e in elements)
    return Tensor("INPUT", "BYTES", (rows or len(elements), 1), data)


LONE: dict[str, tuple[InferCall, str]] = {
    "form": (call(lone_reason="json-tensors"), "json-tensors"),
    "version with a sign": (call(version="+1"), "version-form"),
    "version in other digits": (call(version="\u0661"), "version-form"),
    "sequence": (call(parameters={"sequence_id": 1}), "sequence"),
    "input twice": (call(tensor(), tensor()), "inputs-differ"),
    "input unknown": (call(tensor(name="OTHER")), "inputs-differ"),
    "input missing": (replace(call(), inputs=()), "inputs-differ"),
    "output unknown": (call(outputs=("OTHER",)), "outputs-differ"),
    "output twice": (call(outputs=("OUTPUT", "OUTPUT")), "outputs-differ"),
    "datatype": (call(tensor(datatype="INT8")), "shape-differs"),
    "dimension": (call(tensor(tail=(3,))), "shape-differs"),
    "rank": (call(tensor(tail=(2, 1))), "shape-differs"),
    "no batch dimension": (call(Tensor("INPUT", "UINT8", (), b"")), "shape-differs"),
    "negative rows": (call(Tensor("INPUT", "UINT8", (-1, 2), b"")), "shape-differs"),
    "no rows": (call(tensor(rows=0)), "rows-exceed"),
    "too many rows": (call(tensor(rows=9)), "rows-exceed"),
    "short data": (call(Tensor("INPUT", "UINT8", (2, 2), b"abc")), "bytes-differ"),
    "size beyond 2^63": (call(Tensor("INPUT", "UINT8", (1 << 62, 2), b"abc")), "bytes-differ"),
}


@pytest.mark.parametrize("name", LONE)
def test_what_is_not_plain_goes_alone_with_its_reason(name: str) -> None:
    odd, reason = LONE[name]
    assert lone_reason(odd, ECHO) == reason


@pytest.mark.parametrize("version", ["", "1", "12"])
def test_a_plain_call_may_be_merged(version: str) -> None:
    assert lone_reason(call(tensor(rows=8), version=version, outputs=("OUTPUT",)), ECHO) == ""


def test_the_models_own_reason_counts() -> None:
    assert lone_reason(call(), replace(ECHO, lone_reason="decoupled")) == "decoupled"


def test_a_variable_dimension_takes_any_extent() -> None:
    free = replace(ECHO, inputs={"INPUT": TensorInfo("INPUT", "UINT8", (-1,))})
    assert lone_reason(call(tensor(tail=(7,))), free) == ""


def test_rows_of_several_inputs_must_agree() -> None:
    inputs = {name: TensorInfo(name, "UINT8", (2,)) for name in ("A", "B")}
    pair = call(tensor(1, name="A"), tensor(2, name="B"))
    assert lone_reason(pair, replace(ECHO, inputs=inputs)) == "shape-differs"


def test_whole_byte_strings_may_be_merged() -> None:
    assert lone_reason(call(text_tensor(b"cat", b"")), TEXT) == ""


@pytest.mark.parametrize(
    "broken",
    [
        Tensor("INPUT", "BYTES", (1, 1), b"\x05\x00\x00\x00abc"),
        Tensor("INPUT", "BYTES", (1, 1), b"\x03\x00"),
        Tensor("INPUT", "BYTES", (8, 1), b"\x00" * 8),
        text_tensor(b"a", b"b", rows=1),
    ],
)
def test_broken_byte_strings_go_alone(broken: Tensor) -> None:
    assert lone_reason(call(broken), TEXT) == "bytes-differ"


def test_the_key_tells_one_from_true_and_from_text() -> None:
    """Triton keeps parameter types apart; a batch has one set of parameters."""
    keys = {merge_key(call(parameters={"p": value})) for value in (1, 1.0, "1", True)}
    assert len(keys) == 4


def test_the_key_ignores_data_id_and_the_order_of_inputs() -> None:
    a, b = tensor(name="A"), tensor(2, name="B")
    assert merge_key(call(a, b, id="x")) == merge_key(call(b, a, id="y"))


@pytest.mark.parametrize(
    "other",
    [
        call(version="2"),
        call(outputs=("OUTPUT",)),
        call(tensor(tail=(3,))),
        call(parameters={"priority": 1}),
        call(model="other"),
    ],
)
def test_the_key_tells_what_a_batch_must_share(other: InferCall) -> None:
    assert merge_key(call()) != merge_key(other)


def test_signatures_are_small_equal_numbers_for_equal_keys() -> None:
    signatures = Signatures()
    first = signatures.of(call())
    assert signatures.of(call(tensor(rows=3))) == first
    assert signatures.of(call(version="1")) == first + 1


def test_signatures_are_bounded_and_never_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mergeable, "SIGNATURES_MAX", 3)
    signatures = Signatures()
    numbers = [signatures.of(call(version=str(n))) for n in range(10)]
    assert len(set(numbers)) == 10
    assert signatures.of(call(version="9")) == numbers[9]

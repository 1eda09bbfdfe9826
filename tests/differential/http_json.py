"""JSON tensors: how numbers may be written, for each datatype, and how they come back."""

from typing import Any

from tests.differential.cases import HttpCase, json_infer, output, tensor
from tests.differential.models import DATATYPES

NUMBERS = (
    "0", "1", "-1", "1.0", "1.5", "-0", "-0.0", "1e2", "1E+2", "1e-2", "1e400", "1e-400", "01",
    "+1", ".5", "1.", "0x10", "1_0", "NaN", "Infinity", "-Infinity", "null", "true", "false",
    '"1"', '""', "[]", "{}", "128", "256", "32768", "65536", "2147483648", "4294967296",
    "9223372036854775808", "18446744073709551616", "0.1", "16777217", "1e39", "123456789.123",
)  # fmt: skip
KINDS = ("BOOL", "UINT8", "INT32", "INT64", "UINT64", "FP32", "FP64", "BYTES")


def written(datatype: str, text: str) -> HttpCase:
    name = "I_STRING" if datatype == "BYTES" else f"I_{datatype}"
    head = f'{{"name":"{name}","shape":[1,1],"datatype":"{datatype}","data":[{text}]}}'
    return json_infer(f'{{"inputs":[{head}]}}'.encode(), model="types")


def data(given: Any, shape: tuple[int, ...] = (1, 2)) -> HttpCase:
    entry = {"name": "IN", "shape": list(shape), "datatype": "FP32", "data": given}
    return json_infer({"inputs": [entry]})


SHAPES: dict[str, HttpCase] = {
    "nested": data([[1, 2]]),
    "nested deeper than its shape": data([[[1], [2]]]),
    "nested unevenly": data([[1], 2]),
    "nested the other way": data([[1], [2]]),
    "too few": data([1]),
    "too many": data([1, 2, 3]),
    "none": data([]),
    "no list": data(1),
    "text for a list": data("1,2"),
    "null for a list": data(None),
    "an object for a list": data({"0": 1}),
    "a text among numbers": data([1, "2"]),
    "a null among numbers": data([1, None]),
    "a large tensor": data([0.5] * 4000, (1, 4000)),
    "two rows": data([1, 2, 3, 4], (2, 2)),
    "nine rows": data([0.5] * 9, (9, 1)),
    "error by JSON": data([-3, 0]),
    "for two binary outputs": json_infer(
        {"inputs": [tensor("A", [[5, 7]], "INT32"), tensor("B", [[1, 2]], "INT32")],
         "outputs": [output("SUM", binary_data=True), output("DIFF", binary_data=True)]},
        model="pair",
    ),
}  # fmt: skip
TYPES = {
    f"a {datatype} called FP32": json_infer(
        {"inputs": [tensor(f"I_{datatype}", [[1]], "FP32")]}, model="types"
    )
    for datatype in DATATYPES
}
TABLE: dict[str, HttpCase] = (
    {f"{kind} as {text}": written(kind, text) for kind in KINDS for text in NUMBERS}
    | SHAPES
    | TYPES
    | {"FP16 as 1": written("FP16", "1"), "BF16 as 1": written("BF16", "1")}
)

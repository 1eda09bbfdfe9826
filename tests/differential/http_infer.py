"""Inference over HTTP: JSON and binary tensors, outputs, ids, parameters, compression, faults."""

import gzip
import json
import zlib
from typing import Any

import numpy as np

from tests.differential.cases import (
    ALL_BINARY,
    HEAD,
    ROW,
    HttpCase,
    infer,
    json_infer,
    output,
    path_of,
    plain,
    post,
    slot,
    tensor,
)

TAIL = ROW.tobytes()
TWO = np.array([[1.5, 2.0], [3.0, 4.0]], np.float32)
PAIR = [tensor("A", [[5, 7]], "INT32"), tensor("B", [[1, 2]], "INT32")]
SLOTS = [slot("A", datatype="INT32"), slot("B", datatype="INT32")]
A, B = np.array([5, 7], np.int32).tobytes(), np.array([1, 2], np.int32).tobytes()
TEXT = json.dumps(plain()).encode()
JSON = json.dumps({"inputs": [tensor()]}).encode()


def packed(*texts: bytes) -> bytes:
    """BYTES elements as they stand in a tail."""
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def texts(*given: bytes, shape: tuple[int, ...] = (), tail: bytes = b"", **more: Any) -> HttpCase:
    data = tail or packed(*given)
    entry = slot(shape=shape or (1, len(given)), datatype="BYTES", size=len(data))
    return infer({"inputs": [entry], "parameters": ALL_BINARY} | more, data, model="text")


def pair(outputs: Any = None, inputs: Any = None, tail: bytes = A + B, **more: Any) -> HttpCase:
    head: dict[str, Any] = {"inputs": SLOTS if inputs is None else inputs} | more
    if outputs is not None:
        head["outputs"] = outputs
    return infer(head, tail, model="pair")


NOUGHT = slot(shape=(1, 3), size=12)  # no row of another model call is in its batch
BIN = {"binary_data": True}
TEXTUAL = {"binary_data": False}
FORMS: dict[str, HttpCase] = {
    "plain": infer(),
    "two rows": infer(plain(inputs=[slot(shape=(2, 2), size=16)]), TWO.tobytes()),
    "eight rows": infer(plain(inputs=[slot(shape=(8, 1), size=32)]), bytes(32)),
    "nine rows": infer(plain(inputs=[slot(shape=(9, 1), size=36)]), bytes(36)),
    "no rows": infer(plain(inputs=[slot(shape=(0, 2), size=0)]), b""),
    "no columns": infer(plain(inputs=[slot(shape=(1, 0), size=0)]), b""),
    "no columns in JSON": json_infer({"inputs": [tensor(values=np.zeros((1, 0)))]}),
    "a wide row": infer(plain(inputs=[slot(shape=(1, 5000), size=20000)]), bytes(20000)),
    "JSON": json_infer({"inputs": [tensor()]}),
    "JSON for binary": json_infer({"inputs": [tensor()], "parameters": ALL_BINARY}),
    "JSON for a binary output": json_infer({"inputs": [tensor()], "outputs": [output(**BIN)]}),
    "binary for JSON": infer({"inputs": [slot()]}),
    "binary for a JSON output": infer(plain(outputs=[output(**TEXTUAL)])),
    "JSON with a head length": infer({"inputs": [tensor()]}, b""),
    "JSON and a tail": infer({"inputs": [tensor()]}, TAIL),
    "no dims": infer(plain(inputs=[slot(shape=(), size=4)]), bytes(4)),
    "three dims": infer(plain(inputs=[slot(shape=(1, 1, 2))])),
    "a negative dim": infer(plain(inputs=[slot(shape=(-1, 2))])),
    "two negative dims": infer(plain(inputs=[slot(shape=(-1, -2))])),
    "a fraction of a dim": infer(plain(inputs=[slot(shape=[1, 2.0])])),
    "a dim in words": infer(plain(inputs=[slot(shape=["1", "2"])])),
    "a shape that is none": infer(plain(inputs=[slot() | {"shape": 2}])),
    "a null shape": infer(plain(inputs=[slot() | {"shape": None}])),
    "a datatype that differs": infer(plain(inputs=[slot(datatype="INT32")])),
    "no such datatype": infer(plain(inputs=[slot(datatype="FLOAT")])),
    "a datatype in lower case": infer(plain(inputs=[slot(datatype="fp32")])),
    "no datatype": infer(plain(inputs=[{"name": "IN", "shape": [1, 2]}])),
    "no name": infer(plain(inputs=[{"shape": [1, 2], "datatype": "FP32"}])),
    "a number for a name": infer(plain(inputs=[slot(5)])),  # type: ignore[arg-type]
    "another name": infer(plain(inputs=[slot("INPUT")])),
    "an input twice": infer(plain(inputs=[slot(), slot()]), TAIL * 2),
    "an input too many": infer(plain(inputs=[slot(), slot("OTHER")]), TAIL * 2),
    "no inputs": infer(plain(inputs=[]), b""),
    "null for inputs": infer(plain(inputs=None), b""),
    "an object for inputs": infer(plain(inputs={}), b""),
    "inputs missing": infer({"parameters": ALL_BINARY}, b""),
    "a number among inputs": infer(plain(inputs=[5]), b""),
    "a list of lists for inputs": infer(plain(inputs=[[slot()]])),
    "an input with an unknown member": infer(plain(inputs=[slot(other=1)])),
    "an input with an unknown parameter": infer(
        plain(inputs=[slot(parameters={"binary_data_size": 8, "a": 1})])
    ),
    "a size too small": infer(plain(inputs=[slot(size=4)])),
    "a size too large": infer(plain(inputs=[slot(size=16)])),
    "a negative size": infer(plain(inputs=[slot(size=-8)])),
    "a size in words": infer(plain(inputs=[slot(size="8")])),
    "a fraction of a size": infer(plain(inputs=[slot(size=8.0)])),
    "a size of 2^32": infer(plain(inputs=[slot(size=(1 << 32) + 8)])),
    "a size of 2^63": infer(plain(inputs=[slot(size=1 << 63)])),
    "a size of none": infer(plain(inputs=[slot(size=0)])),
    "a tail too short": infer(None, TAIL[:5]),
    "a tail too long": infer(None, TAIL + b"x"),
    "no tail": infer(None, b""),
    "data and a size": infer(plain(inputs=[slot(data=[1, 2])])),
    "a head length too small": infer(head_length=10),
    "a head length too large": infer(head_length=9999),
    "a head length of -1": infer(head_length=-1),
    "a head length of words": infer(head_length="abc"),
    "a head length of digits and words": infer(head_length=f"{len(TEXT)}abc"),
    "a head length with a plus": infer(head_length=f"+{len(TEXT)}"),
    "a head length with zeros": infer(head_length=f"000{len(TEXT)}"),
    "a head length in hex": infer(head_length=hex(len(TEXT))),
    "a fraction of a head length": infer(head_length=f"{len(TEXT)}.5"),
    "an empty head length": infer(head_length=""),
    "a head length of 2^32": infer(head_length=(1 << 32) + len(TEXT)),
    "a head length of 2^31": infer(head_length=1 << 31),
    "two head lengths": infer(None, TAIL, f"{HEAD}: {len(TEXT)}"),
    "two head lengths that differ": infer(None, TAIL, f"{HEAD}: 7"),
    "a head length in lower case": post(
        path_of("num"), TEXT + TAIL, f"{HEAD.lower()}: {len(TEXT)}"
    ),
    "a head length without a tail's size": infer({"inputs": [slot() | {"parameters": {}}]}),
    "raw": post(path_of("num"), TAIL, f"{HEAD}: 0"),
    "raw of a flat model": post(path_of("flat"), TAIL, f"{HEAD}: 0"),
    "raw of half a number": post(path_of("num"), TAIL[:6], f"{HEAD}: 0"),
    "raw of two inputs": post(path_of("pair"), TAIL, f"{HEAD}: 0"),
    "raw of text": post(path_of("text"), packed(b"abc"), f"{HEAD}: 0"),
    "raw of nothing": post(path_of("num"), b"", f"{HEAD}: 0"),
    "an empty body": post(path_of("num")),
    "half a head": json_infer(JSON[:-2]),
    "no JSON": json_infer(b"hello"),
    "a number": json_infer(b"5"),
    "a list": json_infer(b"[]"),
    "null": json_infer(b"null"),
    "an empty object": json_infer(b"{}"),
    "white space": json_infer(b"  \n"),
    "JSON and more": json_infer(JSON + b"{}"),
    "JSON and white space": json_infer(b" \n" + JSON + b"\r\n\t "),
    "a comma too many": json_infer(JSON[:-1] + b",}"),
    "single quotes": json_infer(JSON.replace(b'"', b"'")),
    "a comment": json_infer(b"/**/" + JSON),
    "a BOM": json_infer(b"\xef\xbb\xbf" + JSON),
    "UTF-16": json_infer(JSON.decode().encode("utf-16")),
    "a NUL before": json_infer(b"\0" + JSON),
    "a NUL after": json_infer(JSON + b"\0"),
    "a NUL after a binary head": infer(TEXT + b"\0"),
    "white space after a binary head": infer(TEXT + b"  "),
    "more after a binary head": infer(TEXT + b"{}"),
    "invalid UTF-8 in the head": infer(TEXT[:-1] + b',"id":"\xff\xfe"}'),
    "deep": json_infer(b'{"inputs":' + b"[" * 60 + b"]" * 60 + b"}"),
    "an unknown member": infer(plain(other=1)),
    "an unknown member in JSON": json_infer({"inputs": [tensor()], "other": {"a": [1]}}),
    "an escaped member": infer(TEXT.replace(b'"inputs"', b'"in\\u0070uts"')),
    "inputs twice": infer(TEXT[:-1] + b',"inputs":[]}'),
    "a name twice": infer(TEXT.replace(b'"name": "IN"', b'"name": "IN", "name": "X"')),
    "an infinite parameter": infer(TEXT.replace(b"true", b'true,"a":1e400')),
    "flat": json_infer({"inputs": [tensor(values=[1.0, 2.0])]}, model="flat"),
    "flat binary": infer(plain(inputs=[slot(shape=(2,))]), model="flat"),
    "flat of none": infer(plain(inputs=[slot(shape=(0,), size=0)]), b"", model="flat"),
    "an optional input": infer(plain(inputs=[slot("A")]), model="opt"),
    "both inputs": infer(plain(inputs=[slot("A"), slot("B")]), TAIL * 2, model="opt"),
    "the optional input alone": infer(plain(inputs=[slot("B")]), model="opt"),
    "rows that disagree": infer(
        plain(inputs=[slot("A"), slot("B", shape=(2, 1))]), TAIL * 2, model="opt"
    ),
    "nothing comes out": infer(model="void"),
    "a model that leaves one out": infer(plain(inputs=[NOUGHT]), bytes(12), model="void"),
    "nothing comes out in JSON": json_infer({"inputs": [tensor()]}, model="void"),
    "only nothing": infer(plain(outputs=[output("NONE", **BIN)]), model="void"),
    "only what is left out": infer(
        plain(inputs=[NOUGHT], outputs=[output(**BIN)]), bytes(12), model="void"
    ),
    "a sequence without an id": infer(model="seq"),
}
FORMS |= {
    f"error {code}": infer(None, np.array([[-code, 0]], np.float32).tobytes())
    for code in range(1, 9)
}
FORMS |= {
    f"error {code} with an id": infer(plain(id="mine"), np.array([[-code, 0]], "<f4").tobytes())
    for code in (2, 5)
}

OUTPUTS: dict[str, HttpCase] = {
    "two outputs": pair(parameters=ALL_BINARY),
    "two outputs in JSON": json_infer({"inputs": PAIR}, model="pair"),
    "no outputs asked": pair([], parameters=ALL_BINARY),
    "null for outputs": pair(outputs=None, parameters=ALL_BINARY | {}),
    "an object for outputs": pair({}),
    "one of two": pair([output("DIFF", **BIN)]),
    "the other": pair([output("SUM", **BIN)]),
    "both": pair([output("SUM", **BIN), output("DIFF", **BIN)]),
    "both the other way round": pair([output("DIFF", **BIN), output("SUM", **BIN)]),
    "one binary": pair([output("SUM", **BIN), output("DIFF")]),
    "one binary the other way": pair([output("DIFF", **BIN), output("SUM")]),
    "all binary but one": pair(
        [output("SUM", **TEXTUAL), output("DIFF")], parameters=ALL_BINARY
    ),
    "named under all binary": pair([output("SUM")], parameters=ALL_BINARY),
    "one twice": pair([output("SUM", **BIN), output("SUM", **BIN)]),
    "one twice in two ways": pair([output("SUM", **BIN), output("SUM")]),
    "none of ours": pair([output("OTHER", **BIN)]),
    "an input for an output": pair([output("A", **BIN)]),
    "a number for an output": pair([5]),
    "an output without a name": pair([{"parameters": BIN}]),
    "an output with a number for a name": pair([{"name": 5}]),
    "an output with an unknown member": pair([output("SUM", **BIN) | {"x": 1}]),
    "an output with an unknown parameter": pair([output("SUM", **BIN, x=1)]),
    "a word for binary_data": pair([output("SUM", binary_data="true")]),
    "a number for binary_data": pair([output("SUM", binary_data=1)]),
    "null for binary_data": pair([output("SUM", binary_data=None)]),
    "a word for binary_data_output": pair(parameters={"binary_data_output": "true"}),
    "a number for binary_data_output": pair(parameters={"binary_data_output": 1}),
    "inputs the other way round": pair(inputs=SLOTS[::-1], tail=B + A, parameters=ALL_BINARY),
    "one input in JSON": pair(inputs=[PAIR[0], SLOTS[1]], tail=B, parameters=ALL_BINARY),
    "one input missing": pair(inputs=SLOTS[:1], tail=A, parameters=ALL_BINARY),
    "top 1": infer(plain(outputs=[output(classification=1)])),
    "top 2 binary": infer(plain(outputs=[output(classification=2, **BIN)])),
    "top 9": infer(plain(outputs=[output(classification=9)])),
    "top 0": infer(plain(outputs=[output(classification=0)])),
    "top -1": infer(plain(outputs=[output(classification=-1)])),
    "top in words": infer(plain(outputs=[output(classification="1")])),
    "top of a whole number": infer(plain(outputs=[output(classification=1.0)])),
    "top of two rows": infer(
        plain(inputs=[slot(shape=(2, 2), size=16)], outputs=[output(classification=2)]),
        TWO.tobytes(),
    ),
    "top of integers": pair([output("SUM", classification=2), output("DIFF", **BIN)]),
    "a region that is not": infer(
        plain(outputs=[output(shared_memory_region="none", shared_memory_byte_size=8)])
    ),
    "an input's region that is not": infer(
        plain(inputs=[slot() | {"parameters": {
            "shared_memory_region": "none", "shared_memory_byte_size": 8}}]), b""
    ),
    "a region without a size": infer(plain(outputs=[output(shared_memory_region="none")])),
    "a region of a number": infer(
        plain(outputs=[output(shared_memory_region=5, shared_memory_byte_size=8)])
    ),
}  # fmt: skip

IDS: dict[str, Any] = {
    "text": "mine", "none": "", "a number": 1, "null": None, "a list": ["a"], "true": True,
    "quotes": 'a"b\\c/d', "accents": "é\U0001f600", "control": "\x01\x1f\n", "DEL": "\x7f",
    "NUL": "a\0b", "a first NUL": "\0a", "markup": "<a>&</a>", "line ends": "a\r\nX: y",
    "long": "x" * 3000, "separators": "\u2028\u2029", "a surrogate": "\ud800",
    "spaces": "  a ",
}  # fmt: skip
ID_CASES = {f"id of {name}": infer(plain(id=value)) for name, value in IDS.items()}
ID_CASES |= {
    f"id of {name} in JSON": json_infer({"inputs": [tensor()], "id": value})
    for name, value in IDS.items()
}
ID_CASES |= {
    "two ids": infer(TEXT[:-1] + b',"id":"first","id":"second"}'),
    "an unescaped id": infer(TEXT[:-1] + 'é","id":"é"}'.encode().replace(b'\xc3\xa9",', b",", 1)),
    "an id after the inputs": infer(TEXT[:-1] + b',"id":"last"}'),
    "an id with a tab in it": infer(TEXT[:-1] + b',"id":"a\tb"}'),
    "an id of raw bytes": infer(TEXT[:-1] + b',"id":"a\xffb"}'),
}

PARAMETERS: dict[str, Any] = {
    "an int": {"a": 1}, "a double": {"a": 1.5}, "a bool": {"a": True}, "a text": {"a": "b"},
    "null": {"a": None}, "a list": {"a": [1]}, "an object": {"a": {"b": 1}},
    "a large int": {"a": 1 << 63}, "a huge int": {"a": 1 << 70}, "a small int": {"a": -(1 << 63)},
    "no name": {"": 1}, "a timeout": {"timeout": 10_000_000}, "no timeout": {"timeout": 0},
    "a text for a timeout": {"timeout": "5"}, "a negative timeout": {"timeout": -1},
    "a fraction of a timeout": {"timeout": 1.5}, "a bool for a timeout": {"timeout": True},
    "a priority": {"priority": 1}, "a large priority": {"priority": 99},
    "a negative priority": {"priority": -1}, "a text for a priority": {"priority": "high"},
    "a sequence": {"sequence_id": 7, "sequence_start": True, "sequence_end": True},
    "a sequence of text": {"sequence_id": "s", "sequence_start": True},
    "a start without a sequence": {"sequence_start": True},
    "a number for a start": {"sequence_id": 7, "sequence_start": 1},
    "a fraction of a sequence": {"sequence_id": 1.5}, "a sequence of 0": {"sequence_id": 0},
    "ours": {"triton_x": 1}, "the empty final": {"triton_enable_empty_final_response": True},
    "an accent": {"é": "é"}, "many": {f"p{n}": n for n in range(50)},
    "a word for binary": {"binary_data_output": "x"}, "a headers name": {"headers": "x"},
}  # fmt: skip
PARAMETER_CASES = {
    f"parameters: {name}": infer(plain(parameters=ALL_BINARY | given))
    for name, given in PARAMETERS.items()
}
PARAMETER_CASES |= {
    "parameters: list": infer(plain(parameters=[])),
    "parameters: null": infer(plain(parameters=None)),
    "parameters: text": infer(plain(parameters="a")),
    "parameters: a sequence of the model's": infer(
        plain(parameters=ALL_BINARY | {"sequence_id": 4711, "sequence_start": True,
                                       "sequence_end": True}), model="seq",
    ),
    "parameters: a sequence that has not begun": infer(
        plain(parameters=ALL_BINARY | {"sequence_id": 4712}), model="seq"
    ),
}  # fmt: skip

TEXTS: dict[str, HttpCase] = {
    "texts": texts(b"abc", b""),
    "texts of bytes": texts(bytes(range(256))),
    "texts of two rows": texts(b"a", b"bb", b"ccc", b"", shape=(2, 2)),
    "texts with a NUL": texts(b"a\0b"),
    "texts that end early": texts(shape=(1, 2), tail=packed(b"abc")),
    "texts with more": texts(shape=(1, 1), tail=packed(b"abc") + b"x"),
    "texts with half a length": texts(shape=(1, 1), tail=b"\1\0"),
    "texts with a long length": texts(shape=(1, 1), tail=b"\xff\xff\xff\xff" + b"abc"),
    "texts of none": infer(
        plain(inputs=[slot(shape=(1, 0), datatype="BYTES", size=0)]), b"", model="text"
    ),
    "texts in JSON": json_infer(
        {"inputs": [tensor(values=[["a", "é\U0001f600", ""]], datatype="BYTES")]}, model="text"
    ),
    "texts for JSON": infer(
        {"inputs": [slot(shape=(1, 1), datatype="BYTES", size=7)]}, packed(b"abc"), model="text"
    ),
    "no text for JSON": infer(
        {"inputs": [slot(shape=(1, 1), datatype="BYTES", size=6)]}, packed(b"\xff\xfe"),
        model="text",
    ),
    "a quote for JSON": infer(
        {"inputs": [slot(shape=(1, 1), datatype="BYTES", size=8)]}, packed(b'"\\\n\0'),
        model="text",
    ),
    "numbers for texts": json_infer(
        {"inputs": [tensor(values=[[1]], datatype="BYTES")]}, model="text"
    ),
}  # fmt: skip

GZIP = gzip.compress(TEXT + TAIL, mtime=0)
CODINGS: dict[str, HttpCase] = {
    "asked in gzip": post(path_of("num"), GZIP, f"{HEAD}: {len(TEXT)}", "Content-Encoding: gzip"),
    "asked in deflate": post(
        path_of("num"), zlib.compress(TEXT + TAIL), f"{HEAD}: {len(TEXT)}",
        "Content-Encoding: deflate",
    ),
    "asked in raw deflate": post(
        path_of("num"), zlib.compress(JSON)[2:-4], "Content-Encoding: deflate"
    ),
    "JSON in gzip": post(path_of("num"), gzip.compress(JSON), "Content-Encoding: gzip"),
    "gzip in two pieces": post(
        path_of("num"), gzip.compress(JSON[:9]) + gzip.compress(JSON[9:]), "Content-Encoding: gzip"
    ),
    "half of gzip": post(path_of("num"), GZIP[:30], "Content-Encoding: gzip"),
    "no gzip": post(path_of("num"), JSON, "Content-Encoding: gzip"),
    "empty gzip": post(path_of("num"), b"", "Content-Encoding: gzip"),
    "asked in identity": infer(None, TAIL, "Content-Encoding: identity"),
    "asked in Identity": infer(None, TAIL, "Content-Encoding: Identity"),
    "asked in GZIP": post(path_of("num"), gzip.compress(JSON), "Content-Encoding: GZIP"),
    "asked in br": infer(None, TAIL, "Content-Encoding: br"),
    "asked in two": post(path_of("num"), gzip.compress(JSON), "Content-Encoding: gzip, gzip"),
    "asked in nothing": infer(None, TAIL, "Content-Encoding:"),
}  # fmt: skip
ACCEPTS = (
    "gzip", "deflate", "identity", "gzip, deflate", "deflate, gzip", "deflate;q=0.1, gzip;q=0.2",
    "gzip;q=0", "gzip;q=0, deflate", "identity;q=0.5, gzip;q=0.6", "gzip;q=0.5, identity", "*",
    "*;q=0", "br", "br, gzip", "GZIP", "x-gzip", "gzip;q=1.0;x=y", "gzip ;q=1", "gzip; q=0.1",
    "gzip;q=x", "gzip;q=-1", "gzip;q=2", "gzip;", ";q=1", "", ",", "gzip,,deflate;q=0.5",
    "gzip;Q=0.1, deflate;q=0.5", "gzip;q=0.1234567, deflate;q=0.12345", "  gzip", "gzip;q=.5",
    "deflate;q=1e-1, gzip;q=0.2", "gzip\tx", "identity, *;q=0", "deflate;q=0.0, gzip;q=0.0",
)  # fmt: skip
CODINGS |= {f"for {a!r}": infer(None, TAIL, f"Accept-Encoding: {a}") for a in ACCEPTS}
CODINGS |= {
    "for two lines": infer(None, TAIL, "Accept-Encoding: gzip", "Accept-Encoding: deflate"),
    "for two lines, none first": infer(None, TAIL, "Accept-Encoding: br", "Accept-Encoding: gzip"),
    "an error for gzip": infer(None, TAIL, "Accept-Encoding: gzip", model="nobody"),
    "a model's error for gzip": infer(
        None, np.array([[-2, 0]], "<f4").tobytes(), "Accept-Encoding: gzip"
    ),
    "metadata for gzip": infer({"inputs": [tensor()]}, b"", "Accept-Encoding: gzip"),
}
HEADERS = (
    "Content-Type: text/html", "Accept: text/html", "Authorization: Bearer x", "Cookie: a=b",
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Empty:",
    "endpoint-load-metrics-format: text", "Connection: keep-alive", "TE: trailers",
    "Keep-Alive: timeout=5", "triton-grpc-protocol-x: y", "Range: bytes=0-1", "If-None-Match: *",
    "Origin: http://elsewhere", "Host: other", "timeout: 1", "priority: 1", "sequence_id: 5",
)  # fmt: skip
CODINGS |= {f"with {h}": infer(None, TAIL, h) for h in HEADERS}

TABLE: dict[str, HttpCase] = FORMS | OUTPUTS | ID_CASES | PARAMETER_CASES | TEXTS | CODINGS

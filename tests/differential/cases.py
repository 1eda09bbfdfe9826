"""One table of requests. Rule: a case is bytes and a name that says what is odd about it; what it
should bring is never written down: Triton says it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.differential.wire import GrpcAsk, HttpAsk

HEAD = "Inference-Header-Content-Length"
ALL_BINARY = {"binary_data_output": True}
ROW = np.array([[1.5, 2.0]], np.float32)


@dataclass(frozen=True, slots=True)
class HttpCase:
    """may_differ: a rule of `compare`; empty: not at all."""

    ask: HttpAsk
    may_differ: str = ""


@dataclass(frozen=True, slots=True)
class GrpcCase:
    ask: GrpcAsk


def http(
    method: str,
    path: str,
    *headers: str | bytes,
    body: bytes = b"",
    length: bool = True,
    version: str = "1.1",
) -> bytes:
    """A request as it is sent. length: with Content-Length."""
    lines = [f"{method} {path} HTTP/{version}".encode("latin-1"), b"Host: x"]
    lines += [line if isinstance(line, bytes) else line.encode("latin-1") for line in headers]
    if length:
        lines.append(f"Content-Length: {len(body)}".encode())
    return b"\r\n".join((*lines, b"", body))


def one(data: bytes) -> HttpCase:
    return HttpCase(HttpAsk((data,)))


def get(path: str, *headers: str) -> HttpCase:
    return one(http("GET", path, *headers, length=False))


def post(path: str, body: bytes = b"", *headers: str) -> HttpCase:
    return one(http("POST", path, *headers, body=body))


def tensor(name: str = "IN", values: Any = ROW, datatype: str = "FP32", **members: Any) -> Any:
    """An input with its data as JSON."""
    array = np.asarray(values)
    made = {"name": name, "shape": list(array.shape), "datatype": datatype}
    return made | {"data": array.flatten().tolist()} | members


def slot(
    name: str = "IN", shape: Iterable[Any] = (1, 2), datatype: str = "FP32", size: Any = 8,
    **members: Any,
) -> dict[str, Any]:  # fmt: skip
    """An input whose data is in the tail."""
    made = {"name": name, "shape": list(shape), "datatype": datatype}
    return made | {"parameters": {"binary_data_size": size}} | members


def output(name: str = "OUT", /, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters} if parameters else {"name": name}


def infer(
    head: Any = None,
    tail: bytes = ROW.tobytes(),
    *headers: str,
    model: str = "num",
    version: str = "",
    head_length: Any = None,
) -> HttpCase:
    """POST infer with a binary tail. head: an object or bytes; the plain one if absent."""
    given = {"inputs": [slot()], "parameters": ALL_BINARY} if head is None else head
    text = given if isinstance(given, bytes) else json.dumps(given).encode()
    length = len(text) if head_length is None else head_length
    return post(path_of(model, version), text + tail, f"{HEAD}: {length}", *headers)


def json_infer(head: Any, *headers: str, model: str = "num", version: str = "") -> HttpCase:
    """POST infer without a tail."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return post(path_of(model, version), text, *headers)


def path_of(model: str, version: str = "") -> str:
    middle = f"/versions/{version}" if version else ""
    return f"/v2/models/{model}{middle}/infer"


def plain(**members: Any) -> dict[str, Any]:
    """The plain binary head and more members."""
    return {"inputs": [slot()], "parameters": ALL_BINARY} | members

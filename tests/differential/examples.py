"""What NVIDIA's own Python client examples ask, as cases of the table. Rule: bytes as tritonclient
sends them, on our models; a case's name is the example's.

Their other requests stand in the tables already, under names of their own.
"""

import base64
import gzip
import json
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.differential.cases import (
    HEAD,
    ROW,
    GrpcCase,
    HttpCase,
    get,
    infer,
    output,
    path_of,
    plain,
    post,
    slot,
    tensor,
)
from tests.differential.grpc_cases import ask, given, request, stream
from tests.differential.grpc_cases import infer as grpc_infer
from tests.differential.models import CODE, ERRORS
from tests.differential.scripts import Script

TAIL = ROW.tobytes()
BIN, TEXTUAL = {"binary_data": True}, {"binary_data": False}
QUERY = "?test_1=1&test_2=2"
SPARE = "/v2/repository/models/spare"
MADE = "/v2/repository/models/made"
NOT_JSON = '"parameters": {"config": {{"max_batch_size": "16"}}}'
SIXTEEN = '{"max_batch_size":"16"}'
MODEL = (CODE % {"errors": ERRORS, "kind": "num"}).encode()
CONFIG = json.dumps({
    "name": "made", "backend": "python", "max_batch_size": 4,
    "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [-1]}],
    "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
})  # fmt: skip
VALUES = (11, 7, 5, 3, 2, 0, 1)


def pressed(body: bytes, coding: str) -> bytes:
    if coding == "gzip":
        return gzip.compress(body, mtime=0)
    return zlib.compress(body) if coding == "deflate" else body


def mixed(*headers: str, outputs: bool = True, coding: str = "", **how: Any) -> HttpCase:
    """One input in JSON and one in the tail, one output in JSON and one in the tail."""
    head: dict[str, Any] = {"inputs": [tensor("A", [[5, 7]], "INT32"), slot("B", datatype="INT32")]}
    if outputs:
        head["outputs"] = [output("SUM", **BIN), output("DIFF", **TEXTUAL)]
    else:
        head["parameters"] = {"binary_data_output": True}
    text = json.dumps(head).encode()
    body = text + np.array([1, 2], np.int32).tobytes()
    lines = (f"{HEAD}: {len(text)}", *((f"Content-Encoding: {coding}",) if coding else ()))
    return post(path_of(how.get("model", "pair")) + QUERY, pressed(body, coding), *lines, *headers)


def texts(*, binary_in: bool, binary_out: bool) -> HttpCase:
    """Elements that end in NULs, each way in and out."""
    elements = [f"{number}\0\0" for number in range(4)]
    out = [output("OUT", **(BIN if binary_out else TEXTUAL))]
    if not binary_in:
        entry = {"name": "IN", "shape": [1, 4], "datatype": "BYTES", "data": elements}
        return post(path_of("text"), json.dumps({"inputs": [entry], "outputs": out}).encode())
    data = b"".join(len(one).to_bytes(4, "little") + one.encode() for one in elements)
    head = {"inputs": [slot(shape=(1, 4), datatype="BYTES", size=len(data))], "outputs": out}
    return infer(head, data, model="text")


def step(model: str, name: int | str, index: int, value: float) -> Any:
    """A message of a sequence, with the id that the examples give it."""
    made = request(
        model, (("IN", "FP32", (1, 1)),), (np.array([value], np.float32).tobytes(),), ("OUT",),
        id=f"{name}_{index + 1}",
    )  # fmt: skip
    return given(
        made,
        sequence_id=name,
        sequence_start=index == 0,
        sequence_end=index == len(VALUES) - 1,
    )


def steps(model: str, *names: int | str) -> tuple[Any, ...]:
    """Whole sequences, one behind the other."""
    return tuple(
        step(model, name, index, value) for name in names for index, value in enumerate(VALUES)
    )


def http_steps(model: str, name: int | str) -> tuple[HttpCase, ...]:
    """A whole sequence over HTTP."""
    cases = []
    for index, value in enumerate(VALUES):
        parameters = {
            "sequence_id": name,
            "sequence_start": index == 0,
            "sequence_end": index == len(VALUES) - 1,
        }
        head = plain(
            inputs=[slot(shape=(1, 1), size=4)],
            parameters={"binary_data_output": True} | parameters,
        )
        cases.append(infer(head, np.array([value], np.float32).tobytes(), model=model))
    return tuple(cases)


def grpc_load(name: str, files: dict[str, bytes] | None = None, **parameters: str) -> GrpcCase:
    made = given(pb.RepositoryModelLoadRequest(model_name=name), **parameters)
    for path, content in (files or {}).items():
        made.parameters[path].bytes_param = content
    return ask("RepositoryModelLoad", made)


def load(path: str, **parameters: str) -> HttpCase:
    return post(f"{path}/load", json.dumps({"parameters": parameters}).encode())


FILES = {"file:1/model.py": base64.b64encode(MODEL).decode()}
NINE = infer(plain(inputs=[slot(shape=(9, 1), size=36)]), bytes(36), model="spare")
MADE_ROW = infer(model="made")
GRPC_READY = ask("ModelReady", pb.ModelReadyRequest(name="spare"))
GRPC_CONFIG = ask("ModelConfig", pb.ModelConfigRequest(name="spare"))
GRPC_UNLOAD = ask(
    "RepositoryModelUnload",
    given(pb.RepositoryModelUnloadRequest(model_name="spare"), unload_dependents=False),
)

METADATA_OF_NUM = ask("ModelMetadata", pb.ModelMetadataRequest(name="num")).ask
TABLE: dict[str, HttpCase | GrpcCase] = {
    "simple_http_infer": mixed(),
    "simple_http_infer without outputs": mixed(outputs=False),
    "simple_http_infer in gzip": mixed(coding="gzip"),
    "simple_http_infer in deflate": mixed(coding="deflate"),
    "simple_http_infer for gzip": mixed("Accept-Encoding: gzip"),
    "simple_http_infer in gzip for deflate": mixed("Accept-Encoding: deflate", coding="gzip"),
    "simple_http_infer in deflate for gzip": mixed("Accept-Encoding: gzip", coding="deflate"),
    "simple_http_infer with headers": mixed("test: 1", "dummy: 2"),
    "simple_http_infer of no model": mixed(model="wrong_model_name"),
    "simple_http_health_metadata": get(f"/v2/health/live{QUERY}"),
    "simple_http_health_metadata of a model": get(f"/v2/models/num{QUERY}"),
    "simple_grpc_health_metadata with headers": GrpcCase(
        replace(METADATA_OF_NUM, metadata=(("dummy", "2"), ("test", "1")))
    ),
    "simple_grpc_custom_args with headers": grpc_infer(request(), ("test", "1")),
    "simple_http_cudashm": post("/v2/cudasharedmemory/unregister"),
    "simple_grpc_explicit_byte_content": grpc_infer(
        request("text", (("IN", "BYTES", (1, 2)),), (b"\1\0\0\0a\2\0\0\0bc",), ("OUT",))
    ),
}  # fmt: skip
TABLE |= {
    f"simple_http_string_infer {'binary' if a else 'JSON'} to {'binary' if b else 'JSON'}": texts(
        binary_in=a, binary_out=b
    )
    for a in (True, False)
    for b in (True, False)
}

SCRIPTS: dict[str, Script] = {
    "simple_http_sequence_sync": http_steps("tale", 1000) + http_steps("tale", 1001),
    "simple_http_sequence_sync of text": http_steps("tale", "7f2c-a"),
    "simple_http_sequence_sync of text with CORRID": http_steps("seq", "1002"),
    "simple_grpc_sequence_sync": tuple(map(grpc_infer, steps("tale", 1003, "7f2c-b"))),
    "simple_grpc_sequence_sync with CORRID": tuple(map(grpc_infer, steps("seq", 1004, "1005"))),
    "simple_grpc_sequence_stream": (stream(*steps("tale", 1006, 1007, "7f2c-c")),),
    "simple_grpc_sequence_stream with CORRID": (stream(*steps("seq", 1008, 1009)),),
    "simple_grpc_sequence_stream of text with CORRID": (stream(*steps("seq", "1010")),),
}  # fmt: skip
SLOW: dict[str, Script] = {
    "simple_http_model_control": (
        load(SPARE), get("/v2/models/spare/ready"), load(SPARE, config=NOT_JSON),
        get("/v2/models/spare/ready"), load(SPARE, config=SIXTEEN),
        get("/v2/models/spare/config"), NINE, post(f"{SPARE}/unload"),
        get("/v2/models/spare/ready"), NINE, load(SPARE), NINE,
    ),
    "simple_grpc_model_control": (
        grpc_load("spare"), GRPC_READY, grpc_load("spare", config=NOT_JSON), GRPC_READY,
        grpc_load("spare", config=SIXTEEN), GRPC_CONFIG, NINE, GRPC_UNLOAD, GRPC_READY, NINE,
        grpc_load("spare"), NINE,
    ),
    "simple_http_model_control with files": (
        load(MADE, **FILES), load(MADE, config=CONFIG, **FILES), get("/v2/models/made/ready"),
        get("/v2/models/made/config"), MADE_ROW, post(f"{MADE}/unload"),
        get("/v2/models/made/ready"), MADE_ROW,
    ),
    "simple_grpc_model_control with files": (
        grpc_load("made", {"file:1/model.py": MODEL}, config=CONFIG), MADE_ROW,
        ask("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="made")),
        MADE_ROW,
    ),
}  # fmt: skip
"""Loading takes Triton seconds."""

"""Cases that change what Triton is: each is a list of requests, asked in order, that leaves Triton
as it found it.
"""

import json
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tests.differential.cases import (
    GrpcCase,
    HttpCase,
    get,
    infer,
    json_infer,
    output,
    plain,
    post,
    slot,
    tensor,
)
from tests.differential.grpc_cases import ask, given, request
from tests.differential.grpc_cases import infer as grpc_infer
from tests.differential.models import CONFIGS, IN, OUT, python

REGION_KEY = "/differential-region"  # of a client: names like our own are refused
REGION_BYTES = 64  # two tensors of 8 bytes and room beside them

Script = tuple[HttpCase | GrpcCase, ...]
LOAD, UNLOAD = (f"/v2/repository/models/spare/{word}" for word in ("load", "unload"))
OTHER = json.dumps({
    "name": "spare", "backend": "python", "max_batch_size": 2,
    "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [-1]}],
    "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
})  # fmt: skip
assert python(8, [IN], [OUT]) == CONFIGS["spare"], "OTHER is no longer another"
THREE = infer(plain(inputs=[slot(shape=(3, 1), size=12)]), bytes(12), model="spare")
SPARE = pb.RepositoryModelLoadRequest(model_name="spare")


def sequence(number: int, value: float, *, start: bool = False, end: bool = False) -> HttpCase:
    parameters: dict[str, Any] = {"sequence_id": number}
    parameters |= {"sequence_start": True} if start else {}
    parameters |= {"sequence_end": True} if end else {}
    return json_infer({"inputs": [tensor(values=[[value]])], "parameters": parameters}, model="seq")


def place(name: str, offset: int) -> dict[str, Any]:
    return {
        "shared_memory_region": name,
        "shared_memory_byte_size": 8,
        "shared_memory_offset": offset,
    }


def by_region(name: str, source: int, target: int) -> HttpCase:
    """An inference from one place of a region to another."""
    made = {"name": "IN", "shape": [1, 2], "datatype": "FP32", "parameters": place(name, source)}
    outputs = [output(**place(name, target))]
    return infer({"inputs": [made], "outputs": outputs}, b"")


def from_region(name: str, source: int) -> HttpCase:
    made = {"name": "IN", "shape": [1, 2], "datatype": "FP32", "parameters": place(name, source)}
    return infer(plain(inputs=[made]), b"")


def into_region(name: str, target: int) -> HttpCase:
    return infer(plain(outputs=[output(**place(name, target))]))


def grpc_by_region(name: str, source: int, target: int) -> GrpcCase:
    made = request(raws=())
    given(made.inputs[0], **place(name, source))
    given(made.outputs.add(name="OUT"), **place(name, target))
    return grpc_infer(made)


REGION = "/v2/systemsharedmemory/region/mine"
REGISTER = post(
    f"{REGION}/register",
    json.dumps({"key": REGION_KEY, "offset": 0, "byte_size": REGION_BYTES}).encode(),
)
GRPC_REGISTER = ask(
    "SystemSharedMemoryRegister",
    pb.SystemSharedMemoryRegisterRequest(name="mine", key=REGION_KEY, byte_size=REGION_BYTES),
)
TRACE = "/v2/models/num/trace/setting"
SCRIPTS: dict[str, Script] = {
    "another configuration": (
        post(LOAD, json.dumps({"parameters": {"config": OTHER}}).encode()),
        get("/v2/models/spare/config"), THREE,
        post(UNLOAD), post(LOAD), get("/v2/models/spare/config"), THREE,
    ),
    "a sequence": (
        sequence(31, 1, start=True), sequence(31, 2), sequence(31, 4, end=True), sequence(31, 8),
    ),
    "two sequences": (
        sequence(41, 1, start=True), sequence(42, 10, start=True), sequence(41, 2),
        sequence(42, 20), sequence(42, 40, end=True), sequence(41, 4, end=True),
    ),
    "trace settings": (
        post(TRACE, b'{"trace_rate":"7","trace_count":"3"}'), get(TRACE),
        post(TRACE, b'{"trace_rate":null,"trace_count":null}'), get(TRACE),
    ),
    "log settings": (
        post("/v2/logging", b'{"log_verbose_level":1}'), get("/v2/logging"),
        post("/v2/logging", b'{"log_verbose_level":0}'), ask("LogSettings"),
    ),
    "a region": (
        REGISTER, REGISTER, get(f"{REGION}/status"), into_region("mine", 0),
        by_region("mine", 0, 16), from_region("mine", 16), grpc_by_region("mine", 16, 32),
        from_region("mine", 32), from_region("mine", 60), into_region("mine", 1 << 40),
        from_region("mine", -8), post(f"{REGION}/unregister"), from_region("mine", 0),
        get(f"{REGION}/status"),
    ),
    "a region by gRPC": (
        GRPC_REGISTER, GRPC_REGISTER,
        ask("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="mine")),
        into_region("mine", 8), grpc_by_region("mine", 8, 24), from_region("mine", 24),
        ask("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="mine")),
        grpc_by_region("mine", 8, 24),
    ),
}  # fmt: skip
SLOW: dict[str, Script] = {
    "load again": (THREE, post(LOAD), THREE, get("/v2/models/spare/config")),
    "another configuration by gRPC": (
        ask("RepositoryModelLoad", given(SPARE, config=OTHER)),
        ask("ModelConfig", pb.ModelConfigRequest(name="spare")), THREE,
        ask("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="spare")),
        ask("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="spare")), THREE,
    ),
}  # fmt: skip
"""Loading takes Triton seconds."""

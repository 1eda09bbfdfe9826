"""Everything over gRPC: control, inference field by field, streams, metadata, what cannot be
decoded.
"""

from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.differential.cases import ROW, GrpcCase
from tests.differential.models import DATATYPES
from tests.differential.wire import GrpcAsk

TAIL = ROW.tobytes()
A, B = np.array([5, 7], np.int32).tobytes(), np.array([1, 2], np.int32).tobytes()
REGION = "shared_memory_region"
SIZE = "shared_memory_byte_size"

Input = tuple[str, str, tuple[int, ...]]
IN: Input = ("IN", "FP32", (1, 2))
NOUGHT: Input = ("IN", "FP32", (1, 3))
PAIR: tuple[Input, ...] = (("A", "INT32", (1, 2)), ("B", "INT32", (1, 2)))


def request(
    model: str = "num",
    inputs: tuple[Input, ...] = (IN,),
    raws: tuple[bytes, ...] = (TAIL,),
    outputs: tuple[str, ...] = (),
    **fields: str,
) -> Any:
    made = pb.ModelInferRequest(model_name=model, raw_input_contents=raws, **fields)
    for name, datatype, shape in inputs:
        made.inputs.add(name=name, datatype=datatype, shape=shape)
    for name in outputs:
        made.outputs.add(name=name)
    return made


def given(holder: Any, **parameters: Any) -> Any:
    """With parameters of the kind their Python type says; a pair names the kind itself."""
    for name, value in parameters.items():
        setattr(holder.parameters[name], *_kind_of(value))
    return holder


def _kind_of(value: Any) -> tuple[str, Any]:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    return value if isinstance(value, tuple) else (kinds[type(value)], value)


def with_output(**parameters: Any) -> Any:
    made = request()
    given(made.outputs.add(name="OUT"), **parameters)
    return made


def with_input(**parameters: Any) -> Any:
    made = request(raws=())
    given(made.inputs[0], **parameters)
    return made


def typed(model: str, name: str, datatype: str, shape: tuple[int, ...], **contents: Any) -> Any:
    made = request(model, ((name, datatype, shape),), ())
    for field, values in contents.items():
        getattr(made.inputs[0].contents, f"{field}_contents").extend(values)
    return made


def infer(made: Any, *metadata: tuple[str, str | bytes], **how: Any) -> GrpcCase:
    data = made if isinstance(made, bytes) else made.SerializeToString()
    return GrpcCase(GrpcAsk("ModelInfer", (data,), metadata, **how))


def ask(method: str, message: Any = b"") -> GrpcCase:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return GrpcCase(GrpcAsk(method, (data,)))


def stream(*messages: Any, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> GrpcCase:
    data = tuple(m if isinstance(m, bytes) else m.SerializeToString() for m in messages)
    return GrpcCase(GrpcAsk("ModelStreamInfer", data, metadata))


def texts(*elements: bytes, shape: tuple[int, ...] = (), tail: bytes = b"") -> GrpcCase:
    data = tail or b"".join(len(one).to_bytes(4, "little") + one for one in elements)
    return infer(request("text", (("IN", "BYTES", shape or (1, len(elements))),), (data,)))


NAMED = ("ModelMetadata", "ModelReady", "ModelConfig", "ModelStatistics")
MODELS = {
    "a model": {"name": "num"}, "no model": {"name": "nobody"}, "nothing": {},
    "a version": {"name": "ver", "version": "3"}, "no version": {"name": "ver", "version": "2"},
    "version 01": {"name": "ver", "version": "01"}, "version x": {"name": "ver", "version": "x"},
    "an ensemble": {"name": "double"}, "a sequence model": {"name": "seq"},
}  # fmt: skip
CONTROL: dict[str, GrpcCase] = {
    f"{method} of {name}": ask(method, getattr(pb, f"{method}Request")(**fields))
    for method in NAMED
    for name, fields in MODELS.items()
    if (method, name) != ("ModelStatistics", "nothing")
}
CONTROL |= {
    "ServerLive": ask("ServerLive"),
    "ServerReady": ask("ServerReady"),
    "ServerMetadata": ask("ServerMetadata"),
    "RepositoryIndex": ask("RepositoryIndex"),
    "RepositoryIndex of the ready": ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)),
    "RepositoryIndex of another": ask(
        "RepositoryIndex", pb.RepositoryIndexRequest(repository_name="other")
    ),
    "load of no model": ask(
        "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nobody")
    ),
    "load of nothing": ask("RepositoryModelLoad"),
    "load with a wrong config": ask(
        "RepositoryModelLoad",
        given(pb.RepositoryModelLoadRequest(model_name="nobody"), config="x"),
    ),
    "load with a number": ask(
        "RepositoryModelLoad", given(pb.RepositoryModelLoadRequest(model_name="nobody"), config=1)
    ),
    "load of garbage": ask("RepositoryModelLoad", b"\xff\xff"),
    "unload of no model": ask(
        "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="nobody")
    ),
    "a system region that is not": ask(
        "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="none")
    ),
    "register what is not there": ask(
        "SystemSharedMemoryRegister",
        pb.SystemSharedMemoryRegisterRequest(name="a", key="/no-such-region", byte_size=8),
    ),
    "unregister what is not there": ask(
        "SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="none")
    ),
    "cuda regions": ask("CudaSharedMemoryStatus"),
    "register cuda": ask(
        "CudaSharedMemoryRegister",
        pb.CudaSharedMemoryRegisterRequest(name="a", raw_handle=b"x" * 64, byte_size=8),
    ),
    "unregister cuda": ask("CudaSharedMemoryUnregister"),
    "trace": ask("TraceSetting"),
    "trace of a model": ask("TraceSetting", pb.TraceSettingRequest(model_name="num")),
    "trace of no model": ask("TraceSetting", pb.TraceSettingRequest(model_name="nobody")),
    "logging": ask("LogSettings"),
    "health": ask("/grpc.health.v1.Health/Check"),
    "health of a service": ask("/grpc.health.v1.Health/Check", b"\x0a\x04some"),
    "health watched": ask("/grpc.health.v1.Health/Watch"),
    "no method": ask("Nothing"),
    "no service": ask("/inference.Other/ServerLive"),
    "reflection": ask("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    "a method in lower case": ask("serverlive"),
    "a method of two slashes": ask("//inference.GRPCInferenceService/ServerLive"),
    "garbage for a name": ask("ModelMetadata", b"\xff\xff\xff"),
    "an unknown field for a name": ask("ModelMetadata", b"\x0a\x03num\xa2\x06\x01x"),
    "invalid UTF-8 for a name": ask("ModelMetadata", b"\x0a\x02\xff\xfe"),
}

PLAIN = request().SerializeToString()
FORMS: dict[str, Any] = {
    "plain": request(),
    "two rows": request(inputs=(("IN", "FP32", (2, 2)),), raws=(TAIL * 2,)),
    "eight rows": request(inputs=(("IN", "FP32", (8, 1)),), raws=(bytes(32),)),
    "nine rows": request(inputs=(("IN", "FP32", (9, 1)),), raws=(bytes(36),)),
    "no rows": request(inputs=(("IN", "FP32", (0, 2)),), raws=(b"",)),
    "no columns": request(inputs=(("IN", "FP32", (1, 0)),), raws=(b"",)),
    "no dims": request(inputs=(("IN", "FP32", ()),), raws=(bytes(4),)),
    "three dims": request(inputs=(("IN", "FP32", (1, 1, 2)),)),
    "a negative dim": request(inputs=(("IN", "FP32", (-1, 2)),)),
    "another datatype": request(inputs=(("IN", "INT32", (1, 2)),)),
    "no such datatype": request(inputs=(("IN", "FLOAT", (1, 2)),)),
    "no datatype": request(inputs=(("IN", "", (1, 2)),)),
    "another name": request(inputs=(("INPUT", "FP32", (1, 2)),)),
    "no name": request(inputs=(("", "FP32", (1, 2)),)),
    "an input twice": request(inputs=(IN, IN), raws=(TAIL, TAIL)),
    "an input too many": request(inputs=(IN, ("X", "FP32", (1, 2))), raws=(TAIL, TAIL)),
    "no inputs": request(inputs=(), raws=()),
    "a raw too many": request(raws=(TAIL, TAIL)),
    "a raw missing": request("pair", PAIR, (A,)),
    "no raw": request(raws=()),
    "a raw too short": request(raws=(TAIL[:5],)),
    "a raw too long": request(raws=(TAIL + b"x",)),
    "an empty raw": request(raws=(b"",)),
    "raws without inputs": request(inputs=()),
    "raw and typed": typed("num", "IN", "FP32", (1, 2), fp32=[1, 2]),
    "no model": request("nobody"),
    "no model with an id": request("nobody", id="mine"),
    "nothing for a model": request(""),
    "an ensemble": request("double"),
    "a decoupled model": request("repeat", (("IN", "FP32", (1,)),), (bytes(4),)),
    "flat": request("flat", (("IN", "FP32", (2,)),)),
    "nothing comes out": request("void"),
    "a model that leaves one out": request("void", (NOUGHT,), (bytes(12),)),
    "only what is left out": request("void", (NOUGHT,), (bytes(12),), ("OUT",)),
    "only nothing": request("void", outputs=("NONE",)),
    "an optional input": request("opt", (("A", "FP32", (1, 2)),)),
    "both inputs": request("opt", (("A", "FP32", (1, 2)), ("B", "FP32", (1, 2))), (TAIL, TAIL)),
    "the optional input alone": request("opt", (("B", "FP32", (1, 2)),)),
    "rows that disagree": request(
        "opt", (("A", "FP32", (1, 2)), ("B", "FP32", (2, 1))), (TAIL, TAIL)
    ),
    "two outputs": request("pair", PAIR, (A, B)),
    "inputs the other way round": request("pair", PAIR[::-1], (B, A)),
    "one of two": request("pair", PAIR, (A, B), ("DIFF",)),
    "both": request("pair", PAIR, (A, B), ("SUM", "DIFF")),
    "both the other way round": request("pair", PAIR, (A, B), ("DIFF", "SUM")),
    "one twice": request("pair", PAIR, (A, B), ("SUM", "SUM")),
    "none of ours": request("pair", PAIR, (A, B), ("OTHER",)),
    "an output without a name": request("pair", PAIR, (A, B), ("",)),
    "an input for an output": request("pair", PAIR, (A, B), ("A",)),
    "a missing input": request("pair", PAIR[:1], (A,)),
    "top 1": with_output(classification=1),
    "top 2": with_output(classification=2),
    "top 0": with_output(classification=0),
    "top -1": with_output(classification=-1),
    "top in words": with_output(classification="1"),
    "top of a uint64": with_output(classification=("uint64_param", 1)),
    "binary_data": with_output(binary_data=True),
    "an unknown output parameter": with_output(a=1),
    "a region that is not": with_output(**{REGION: "none", SIZE: 8}),
    "a region without a size": with_output(**{REGION: "none"}),
    "a region of a number": with_output(**{REGION: 5, SIZE: 8}),
    "a region and a class": with_output(**{REGION: "none", SIZE: 8, "classification": 1}),
    "an input's region that is not": with_input(**{REGION: "none", SIZE: 8}),
    "an input's region with an offset": with_input(
        **{REGION: "none", SIZE: 8, "shared_memory_offset": 4}
    ),
    "an input's unknown parameter": with_input(a=1),
    "an input's binary_data_size": with_input(binary_data_size=8),
    "garbage": b"\xff" * 10,
    "half a message": PLAIN[:-3],
    "a message of nothing": b"",
    "an unknown field": PLAIN + b"\xa2\x06\x01x",
    "a field twice": PLAIN + b"\x0a\x03num",
    "another model's field last": PLAIN + b"\x0a\x04flat",
    "a wrong wire type": b"\x08\x01" + PLAIN,
    "a group": PLAIN + b"\xa3\x06\xa4\x06",
    "an unended group": PLAIN + b"\xa3\x06",
    "a long varint": b"\x0a\x83\x80\x00num" + PLAIN[5:],
    "field 0": PLAIN + b"\x02\x01x",
    "invalid UTF-8 for an id": PLAIN + b"\x1a\x02\xff\xfe",
    "invalid UTF-8 for a model": b"\x0a\x02\xff\xfe" + PLAIN[5:],
}
IDS = ("mine", "é\U0001f600", "a\0b", "\0", "\x01\n\x7f", 'q"\\', "x" * 3000, "\u2028")
FORMS |= {f"id of {value[:8]!r}": request(id=value) for value in IDS}
FORMS |= {
    f"version {text!r}": request("ver", model_version=text)
    for text in ("1", "3", "2", "01", " 1", "1 ", "1.5", "1abc", "0", "-1", "x", "+1", "9" * 30)
}
FORMS |= {
    f"error {code}": request(raws=(np.array([-code, 0], np.float32).tobytes(),), id="mine")
    for code in range(1, 9)
}
PARAMETERS: dict[str, Any] = {
    "an int": {"a": 1}, "a double": {"a": 1.5}, "a bool": {"a": True}, "a text": {"a": "b"},
    "a uint64": {"a": ("uint64_param", 1)}, "a priority": {"priority": 1},
    "a uint64 priority": {"priority": ("uint64_param", 1)}, "a text priority": {"priority": "1"},
    "a negative priority": {"priority": -1}, "a timeout": {"timeout": 10_000_000},
    "no timeout": {"timeout": 0}, "a text timeout": {"timeout": "5"},
    "a negative timeout": {"timeout": -1}, "a uint64 timeout": {"timeout": ("uint64_param", 5)},
    "a sequence": {"sequence_id": 7, "sequence_start": True},
    "a text sequence": {"sequence_id": "s"}, "a number for a start": {"sequence_start": 1},
    "ours": {"triton_x": 1}, "the empty final": {"triton_enable_empty_final_response": True},
    "binary_data_output": {"binary_data_output": True}, "no name": {"": 1},
    "invalid double": {"a": float("nan")}, "headers": {"headers": "x"},
    "many": {f"p{n}": n for n in range(50)},
}  # fmt: skip
FORMS |= {f"parameters: {n}": given(request(), **values) for n, values in PARAMETERS.items()}
unset = request()
unset.parameters["a"].SetInParent()
FORMS["parameters: of no kind"] = unset
FIELDS = {
    "BOOL": "bool", "INT8": "int", "INT16": "int", "INT32": "int", "INT64": "int64",
    "UINT8": "uint", "UINT16": "uint", "UINT32": "uint", "UINT64": "uint64", "FP32": "fp32",
    "FP64": "fp64",
}  # fmt: skip
for _datatype, _field in FIELDS.items():
    FORMS[f"typed {_datatype}"] = typed(
        "types", f"I_{_datatype}", _datatype, (1, 2), **{_field: [1, 0]}
    )
FORMS |= {
    "typed BYTES": typed("types", "I_STRING", "BYTES", (1, 2), bytes=[b"a", b"\xff"]),
    "typed FP16": typed("types", "I_FP16", "FP16", (1, 2), fp32=[1, 2]),
    "typed of another kind": typed("num", "IN", "FP32", (1, 2), int=[1, 2]),
    "typed of two kinds": typed("num", "IN", "FP32", (1, 2), fp32=[1, 2], int=[1]),
    "typed too few": typed("num", "IN", "FP32", (1, 2), fp32=[1]),
    "typed too many": typed("num", "IN", "FP32", (1, 2), fp32=[1, 2, 3]),
    "typed of none": typed("num", "IN", "FP32", (1, 2), fp32=[]),
    "typed beyond its range": typed("types", "I_INT8", "INT8", (1, 1), int=[300]),
}
WIDTHS = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "UINT32": 4,
          "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8}  # fmt: skip
for _datatype in DATATYPES:
    if _datatype in WIDTHS:
        FORMS[f"raw {_datatype}"] = request(
            "types", ((f"I_{_datatype}", _datatype, (1, 2)),), (b"\x01" * 2 * WIDTHS[_datatype],)
        )

METADATA: dict[str, tuple[tuple[str, str | bytes], ...]] = {
    "a key": (("a", "b"),),
    "a binary key": (("a-bin", b"\x00\xff"),),
    "a key twice": (("a", "1"), ("a", "2")),
    "a trace": (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),),
    "load metrics": (("endpoint-load-metrics-format", "text"),),
    "a password": (("triton-grpc-protocol-x", "y"),),
    "a kilobyte": (("a", "x" * 1000),),
    "seven kilobytes": (("a", "x" * 7000),),
    "an empty value": (("a", ""),),
    "an error wanted": (("triton_grpc_error", "true"),),
}
TABLE: dict[str, GrpcCase] = (
    CONTROL
    | {name: infer(message) for name, message in FORMS.items()}
    | {f"metadata: {name}": infer(request(), *pairs) for name, pairs in METADATA.items()}
    | {
        "metadata of an error": infer(request("nobody"), ("a", "b")),
        "in gzip": infer(request(), compression=grpc.Compression.Gzip),
        "in deflate": infer(request(), compression=grpc.Compression.Deflate),
        "an error in gzip": infer(request("nobody"), compression=grpc.Compression.Gzip),
        "texts": texts(b"abc", b""),
        "texts of bytes": texts(bytes(range(256))),
        "texts of two rows": texts(b"a", b"bb", b"ccc", b"", shape=(2, 2)),
        "texts that end early": texts(shape=(1, 2), tail=b"\x03\0\0\0abc"),
        "texts with more": texts(shape=(1, 1), tail=b"\x03\0\0\0abcx"),
        "texts with half a length": texts(shape=(1, 1), tail=b"\x01\0"),
        "texts with a long length": texts(shape=(1, 1), tail=b"\xff\xff\xff\xffabc"),
    }
)


def repeat(count: int, **parameters: Any) -> Any:
    data = np.array([count], np.float32).tobytes()
    return given(request("repeat", (("IN", "FP32", (1,)),), (data,)), **parameters)


STREAMS: dict[str, GrpcCase] = {
    "a stream of none": stream(),
    "a stream of one": stream(request(id="1")),
    "a stream of many": stream(*(request(id=str(n)) for n in range(40))),
    "a stream with an error": stream(request(id="1"), request("nobody", id="2"), request(id="3")),
    "a stream with a model's error": stream(
        request(id="1"), request(raws=(np.array([-5, 0], np.float32).tobytes(),), id="2")
    ),
    "a stream of models": stream(request(id="1"), request("pair", PAIR, (A, B), id="2")),
    "a stream of which nothing comes": stream(request("void", (NOUGHT,), (bytes(12),), ("OUT",))),
    "a decoupled stream": stream(repeat(3)),
    "a decoupled stream of none": stream(repeat(0)),
    "a decoupled stream with a final": stream(repeat(3, triton_enable_empty_final_response=True)),
    "a decoupled stream of none with a final": stream(
        repeat(0, triton_enable_empty_final_response=True)
    ),
    "a stream of garbage": stream(b"\xff\xff\xff"),
    "a stream of a request and garbage": stream(request(id="1"), b"\xff\xff\xff"),
    "a stream of a sequence": stream(
        given(request("seq"), sequence_id=99, sequence_start=True),
        given(request("seq"), sequence_id=99),
        given(request("seq"), sequence_id=99, sequence_end=True),
    ),
}
TABLE |= STREAMS

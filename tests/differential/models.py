"""The models that the table asks. Rule: each exists for a trait of Triton's that a merger can get
wrong.

| model    | trait                                                                              |
|----------|------------------------------------------------------------------------------------|
| `num`    | FP32 identity with labels; a row whose least value is -k fails all: ERRORS[k]       |
| `pair`   | INT32 A and B; SUM and DIFF, declared the other way round than they are made       |
| `text`   | BYTES identity                                                                     |
| `types`  | one optional input and output of each datatype; answers what it was given          |
| `opt`    | an input that may be missing                                                       |
| `flat`   | max_batch_size 0: the first dimension is data                                      |
| `void`   | outputs without elements, and one that is left out if IN is 0                      |
| `ver`    | versions 1 and 3 of the kind that answers its version                              |
| `seq`    | a sequence model: the sum so far                                                   |
| `tale`   | a sequence model of the oldest first, without ids: 100 more at a start              |
| `repeat` | decoupled: IN answers, at most 1000                                                 |
| `double` | an ensemble of `num` after `num`                                                   |
| `spare`  | to be loaded and unloaded                                                          |
"""

from pathlib import Path

ERRORS = (
    "", "UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED",
    "ALREADY_EXISTS", "CANCELLED",
)  # fmt: skip
DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "FP32", "FP64", "STRING",
)  # fmt: skip

CODE = """
import numpy as np
import triton_python_backend_utils as pb_utils

ERRORS = %(errors)r


def array(request, name):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def reply(**arrays):
    tensors = [pb_utils.Tensor(n, a) for n, a in arrays.items() if a is not None]
    return pb_utils.InferenceResponse(tensors)


def failed(code):
    error = pb_utils.TritonError("told to fail", code=getattr(pb_utils.TritonError, ERRORS[code]))
    return pb_utils.InferenceResponse(error=error)


def num(self, request):
    values = array(request, "IN")
    rows = [row for row in values.reshape(len(values), -1) if row.size and np.isfinite(row).all()]
    wrong = [low for low in (int(row.min()) for row in rows) if -len(ERRORS) < low < 0]
    return failed(-wrong[0]) if wrong else reply(OUT=values.copy())


def pair(self, request):
    a, b = array(request, "A"), array(request, "B")
    return reply(SUM=a + b, DIFF=a - b)


def text(self, request):
    return reply(OUT=array(request, "IN"))


def opt(self, request):
    a, b = array(request, "A"), array(request, "B")
    return reply(OUT=a + (0 if b is None else b))


def types(self, request):
    names = [tensor.name() for tensor in request.inputs()]
    return reply(**{"O_" + name[2:]: array(request, name) for name in names})


def void(self, request):
    values = array(request, "IN")
    rows = len(values)
    made = None if (values == 0).all() else values.copy()
    return reply(NONE=np.zeros((rows, 0), np.float32), OUT=made)


def ver(self, request):
    values = array(request, "IN")
    return reply(OUT=np.full(values.shape, self.version, np.float32))


def seq(self, request):
    who = array(request, "CORRID").flat[0]
    start = array(request, "START").flat[0]
    self.sums[who] = array(request, "IN") + (0 if start else self.sums.get(who, 0))
    return reply(OUT=self.sums[who])


def tale(self, request):
    return reply(OUT=array(request, "IN") + 100 * array(request, "START").flat[0])


class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])
        self.sums = {}

    def execute(self, requests):
        return [%(kind)s(self, request) for request in requests]
"""

REPEAT = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            for index in range(min(1000, int(values.flat[0]))):
                made = pb_utils.Tensor("OUT", np.full((1,), index, np.float32))
                sender.send(pb_utils.InferenceResponse([made]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

SEQUENCE = """
sequence_batching {
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
"""
OLDEST = """
sequence_batching {
  oldest { max_candidate_sequences: 4 }
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] }
  ]
}
"""
ENSEMBLE = """platform: "ensemble"
max_batch_size: 8
input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
ensemble_scheduling {
  step [
    { model_name: "num" model_version: -1
      input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "mid" } },
    { model_name: "num" model_version: -1
      input_map { key: "IN" value: "mid" } output_map { key: "OUT" value: "OUT" } }
  ]
}
"""


def tensor(name: str, datatype: str, dims: str = "-1", more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{datatype} dims: [ {dims} ] {more} }}'


def python(rows: int, inputs: list[str], outputs: list[str], more: str = "") -> str:
    """A configuration of the python backend."""
    return f"""backend: "python"
max_batch_size: {rows}
input [ {", ".join(inputs)} ]
output [ {", ".join(outputs)} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{more}
"""


IN = tensor("IN", "FP32")
OUT = tensor("OUT", "FP32")
LABELLED = tensor("OUT", "FP32", "-1", 'label_filename: "labels.txt"')
INT2 = {name: tensor(name, "INT32", "2") for name in ("A", "B", "SUM", "DIFF")}

CONFIGS: dict[str, str] = {
    "num": python(8, [IN], [LABELLED]),
    "pair": python(8, [INT2["A"], INT2["B"]], [INT2["DIFF"], INT2["SUM"]]),
    "text": python(8, [tensor("IN", "STRING")], [tensor("OUT", "STRING")]),
    "types": python(
        4,
        [tensor(f"I_{kind}", kind, "-1", "optional: true") for kind in DATATYPES],
        [tensor(f"O_{kind}", kind) for kind in DATATYPES],
    ),
    "opt": python(8, [tensor("A", "FP32"), tensor("B", "FP32", "-1", "optional: true")], [OUT]),
    "flat": python(0, [IN], [LABELLED]),
    "void": python(8, [IN], [tensor("NONE", "FP32"), OUT]),
    "ver": python(8, [IN], [OUT], "version_policy { specific { versions: [ 1, 3 ] } }"),
    "seq": python(4, [IN], [OUT], SEQUENCE),
    "tale": python(4, [IN], [OUT], OLDEST),
    "repeat": python(0, [IN], [OUT], "model_transaction_policy { decoupled: true }"),
    "spare": python(8, [IN], [OUT]),
}
KINDS = {"flat": "num", "spare": "num"}
VERSIONS = {"ver": (1, 3), "spare": (1, 2)}
LABELS = "zero\none\ntwo\n"


def write_repository(directory: Path) -> None:
    """All of them, `spare` in two versions."""
    for name, config in CONFIGS.items():
        for version in VERSIONS.get(name, (1,)):
            folder = directory / name / str(version)
            folder.mkdir(parents=True)
            code = CODE % {"errors": ERRORS, "kind": KINDS.get(name, name)}
            (folder / "model.py").write_text(REPEAT if name == "repeat" else code)
        (directory / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
        (directory / name / "labels.txt").write_text(LABELS)
    (directory / "double" / "1").mkdir(parents=True)
    (directory / "double" / "config.pbtxt").write_text(f'name: "double"\n{ENSEMBLE}')

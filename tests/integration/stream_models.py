"""A Triton for the tests of streams, cancellation and loading: one model a trait.

| model    | what it does                                                                       |
|----------|------------------------------------------------------------------------------------|
| `plain`  | IN [n] as OUT                                                                      |
| `gated`  | the same, once the test has let it through: see `Gate`                             |
| `double` | an ensemble of `plain` after `plain`                                               |
| `summed` | a sequence model: OUT is the sum of IN over the sequence so far                    |
| `repeat` | decoupled: IN[0] answers, OUT = 0, 1, …; then the final flag alone                 |
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.integration.raw_triton import infer_request

MODELS = ("plain", "gated", "double", "summed", "repeat")

HEAD = """
import numpy as np
import triton_python_backend_utils as pb_utils


def inputs(request):
    return pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()


def response(values):
    tensor = pb_utils.Tensor("OUT", np.asarray(values, np.float32))
    return pb_utils.InferenceResponse([tensor])
"""

PLAIN = """
class TritonPythonModel:
    def execute(self, requests):
        return [response(inputs(request).copy()) for request in requests]
"""

GATED = """
import json


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.gate = parameters["gate"]["string_value"]

    def execute(self, requests):
        with open(self.gate, "rb") as gate:  # blocks until the test opens it, too
            gate.read()
        return [response(inputs(request).copy()) for request in requests]
"""

SUMMED = """
class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [response(self.added(request)) for request in requests]

    def added(self, request):
        start = pb_utils.get_input_tensor_by_name(request, "START").as_numpy().flat[0]
        who = pb_utils.get_input_tensor_by_name(request, "CORRID").as_numpy().flat[0]
        self.sums[who] = inputs(request) + (0 if start else self.sums.get(who, 0))
        return self.sums[who]
"""

REPEAT = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for index in range(int(inputs(request).flat[0])):
                sender.send(response(np.full((1, 1), index)))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

TENSORS = """
input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
PYTHON = f"""backend: "python"
max_batch_size: %d
{TENSORS}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""
SLOTS = 8  # rows of `summed` that one execution has, each for one sequence
SEQUENCE = """
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
"""
STEP = (
    'step [ {{ model_name: "plain" model_version: -1'
    ' input_map {{ key: "IN" value: "{source}" }}'
    ' output_map {{ key: "OUT" value: "{target}" }} }} ]'
)
ENSEMBLE = f"""platform: "ensemble"
max_batch_size: 8
{TENSORS}
ensemble_scheduling {{
  {STEP.format(source="IN", target="middle")}
  {STEP.format(source="middle", target="OUT")}
}}
"""


class Gate:
    """A named pipe at which `gated` waits before each execution."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    async def let_one_through(self) -> None:
        """Waits for an execution to come to the gate."""
        await asyncio.to_thread(self._open)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """For as many executions as come."""
        is_over = threading.Event()

        def serve() -> None:
            while not is_over.is_set():
                self._open()

        serving = asyncio.ensure_future(asyncio.to_thread(serve))
        try:
            yield
        finally:
            is_over.set()
            while not serving.done():  # it waits for a reader: be one
                os.close(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK))
                await asyncio.to_thread(lambda: None)

    def _open(self) -> None:
        with self.path.open("wb"):
            pass


def write_model(repository: Path, name: str, config: str, code: str = "", version: int = 1) -> None:
    """A model with one version; writing it again changes it."""
    directory = repository / name / str(version)
    directory.mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    if code:
        (directory / "model.py").write_text(HEAD + code)


def write_repository(directory: Path) -> Gate:
    """All of them; returns the gate of `gated`."""
    gate = Gate(directory.parent / "gate")
    parameter = f'parameters {{ key: "gate" value: {{ string_value: "{gate.path}" }} }}'
    write_model(directory, "plain", PYTHON % 8, PLAIN)
    write_model(directory, "gated", PYTHON % 8 + parameter, GATED)
    write_model(directory, "double", ENSEMBLE)
    write_model(directory, "summed", PYTHON % SLOTS + SEQUENCE, SUMMED)
    decoupled = "model_transaction_policy { decoupled: true }\n"
    write_model(directory, "repeat", PYTHON % 0 + decoupled, REPEAT)
    return gate


def ask(model: str, value: float, *, rows: bool = True, **fields: str) -> Any:
    """A request of one number. rows: the model has a batch dimension."""
    made = infer_request(model, {"IN": np.full((1, 1) if rows else (1,), value, np.float32)})
    for name, text in fields.items():
        setattr(made, name, text)
    return made


def in_sequence(request: Any, number: int, step: int, steps: int) -> Any:
    """The request as a step of a sequence of so many."""
    request.parameters["sequence_id"].int64_param = number
    request.parameters["sequence_start"].bool_param = step == 0
    request.parameters["sequence_end"].bool_param = step == steps - 1
    return request

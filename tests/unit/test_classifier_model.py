"""The classifiers' model.py on fakes of Triton and onnxruntime: batches, and faults kept apart."""

import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

MODEL = Path(__file__).parents[2] / "model_repository/classify_lite0/1/model.py"


@dataclass
class FakeSession:
    """Answers each row with its first value; refuses a batch that holds `poison`."""

    batches: list[int] = field(default_factory=list)
    poison: int = 255

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        batch = inputs["IMAGE"]
        self.batches.append(len(batch))
        if self.poison in batch:
            raise RuntimeError("no such picture")
        return [batch[:, :1].astype(np.float32)]


def tensor(request: Any, name: str) -> Any:
    """Triton's accessor: a request is its rows here, or the fault that reading it raises."""
    if isinstance(request, Exception):
        raise request
    return SimpleNamespace(as_numpy=lambda: np.array(request, np.uint8).reshape(-1, 2))


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    """model.py imports what only Triton's own environment has; these stand in."""
    fake = FakeSession()
    triton = SimpleNamespace(
        get_input_tensor_by_name=tensor,
        Tensor=lambda name, values: values,
        TritonError=str,
        InferenceResponse=lambda output_tensors=None, error=None: error or output_tensors[0],
    )
    runtime = SimpleNamespace(
        SessionOptions=SimpleNamespace, InferenceSession=lambda *args, **options: fake
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return fake


def execute(requests: list[Any]) -> list[Any]:
    """What a freshly loaded model answers."""
    model = runpy.run_path(str(MODEL))["TritonPythonModel"]()
    model.initialize({"model_repository": "", "model_version": "1"})
    return list(model.execute(requests))


def test_all_requests_are_one_run_and_each_gets_its_rows(session: FakeSession) -> None:
    """Rows come back in the order of the requests that brought them."""
    first, second, third = execute([[1, 9], [2, 9, 3, 9], [4, 9]])
    assert session.batches == [4]
    assert [first.tolist(), second.tolist(), third.tolist()] == [[[1.0]], [[2.0], [3.0]], [[4.0]]]


def test_an_unreadable_request_fails_alone(session: FakeSession) -> None:
    """The others are computed without it."""
    first, second, third = execute([[1, 9], ValueError("torn"), [4, 9]])
    assert session.batches == [2]
    assert (first.tolist(), third.tolist()) == ([[1.0]], [[4.0]])
    assert second == "classifier: torn"


def test_a_failed_run_answers_every_request(session: FakeSession) -> None:
    """No request is left without a response: Triton would wait for it for ever."""
    assert execute([[1, 9], [255, 9]]) == ["classifier: no such picture"] * 2


def test_nothing_readable_runs_nothing(session: FakeSession) -> None:
    """All torn: errors, and no run of an empty batch."""
    assert execute([ValueError("torn")]) == ["classifier: torn"]
    assert session.batches == []

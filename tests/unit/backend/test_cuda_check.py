"""Two processes and one memory: what is found, and in which words."""

import hashlib
import io
import json
import sys
from typing import Any

import pytest

from tritonsched.backend import cuda_check
from tritonsched.backend.cuda_check import answer, ask_process, ipc_fault
from tritonsched.backend.scripted_cuda import Fault, ScriptedCuda
from tritonsched.errors import CudaFault


def asking(other: ScriptedCuda) -> cuda_check.Ask:
    return lambda question: answer(other, json.loads(json.dumps(question)))


def test_memory_that_goes_both_ways_is_well_and_given_back() -> None:
    cuda = ScriptedCuda()
    other = cuda.process()
    assert ipc_fault(cuda, 0, asking(other)) == ""
    assert cuda.held() == other.held() == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("out-of-memory", "out of memory"),
        ("no-host", "cudaHostAlloc"),
        ("no-handle", "NotSupported"),
        ("ipc-refused", "another process: cudaIpcOpenMemHandle"),
        ("copy-error", "IllegalAddress"),
        ("wrong-bytes", "read other bytes"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_stays(fault: Fault, words: str) -> None:
    cuda = ScriptedCuda(faults=[fault])
    other = cuda.process()
    assert words in ipc_fault(cuda, 0, asking(other))
    assert cuda.held() == other.held() == []


def test_a_change_that_does_not_arrive_is_seen() -> None:
    """As if both looked at memory of their own."""

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        return {"sha256": hashlib.sha256(cuda_check.PATTERN).hexdigest()}

    assert "did not arrive" in ipc_fault(ScriptedCuda(), 0, ask)


def test_another_process_without_a_gpu_says_so() -> None:
    """A real process: here it finds no driver; with a GPU it refuses the handle of nothing."""
    told = ask_process({"device": 0, "handle": "00" * 64})
    assert "cuda" in told["fault"]


def test_a_process_that_does_not_answer_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "/nowhere/python" in ask_process({})["fault"]


@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_question_comes_and_the_answer_goes_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_gpu: bool
) -> None:
    cuda = ScriptedCuda()
    there = cuda.allocate(0, 8192)

    def loaded() -> ScriptedCuda:
        if not has_gpu:
            raise CudaFault("no driver")
        return cuda.process()

    monkeypatch.setattr(cuda_check, "load", loaded)
    question = {"device": 0, "handle": cuda.handle(0, there).hex()}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(question)))
    cuda_check.main()
    told = json.loads(capsys.readouterr().out)
    assert set(told) == ({"sha256"} if has_gpu else {"fault"})

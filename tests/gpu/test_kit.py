"""The GPU kit without a GPU: what it says, what it writes, and that it never passes in silence."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tests.gpu import __main__ as kit
from tests.gpu import found, live, report
from tests.gpu.clients import batches_of
from tests.gpu.found import Found
from tests.gpu.repository import MODEL, NETS, config_text, write_repository
from tritonsched.backend.catalogue import model_info
from tritonsched.backend.cuda import Cuda
from tritonsched.backend.cuda_check import answer
from tritonsched.backend.scripted_cuda import ScriptedCuda
from tritonsched.errors import CudaFault

NVIDIA_SMI = '#!/bin/sh\necho "NVIDIA Test, 999.1"\n'
VERSIONS = {"torch": "2", "torchvision": "1", "numpy": "1.26", "cuda": "12.8", "gpu": "NVIDIA Test"}


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def no_cuda() -> Cuda:
    raise CudaFault("cudaGetDeviceCount: cudaErrorInsufficientDriver")


# -- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "ok"), [((3, 10), False), ((3, 11), True), ((3, 12), True), ((3, 13), False)]
)
def test_the_python_is_one_that_triton_has_a_numpy_for(version: tuple[int, int], ok: bool) -> None:
    assert found.python_version(version).ok is ok


def test_a_machine_without_a_gpu_is_told_so_in_every_line() -> None:
    lines = list(found.first(no_cuda, nvidia_smi="no-such-program"))
    assert [line.ok for line in lines] == [True, False, False, False]
    text = " ".join(line.text for line in lines)
    assert "no-such-program is not there" in text
    assert "needs driver 580" in text
    assert "not asked: no CUDA" in text


def test_a_machine_with_one_is_well(tmp_path: Path) -> None:
    cuda = ScriptedCuda(("NVIDIA Test",))
    other = cuda.process()
    smi = program(tmp_path / "smi", NVIDIA_SMI)
    lines = list(found.first(lambda: cuda, lambda q: answer(other, q), str(smi)))
    assert all(line.ok for line in lines)
    assert lines[1].text == "999.1: NVIDIA Test"


def test_cuda_that_two_processes_cannot_share_is_missing(tmp_path: Path) -> None:
    cuda = ScriptedCuda(faults=["ipc-refused"])
    other = cuda.process()
    told = found.interprocess(cuda, lambda q: answer(other, q))
    assert not told.ok
    assert "cudaIpcOpenMemHandle" in told.text


@pytest.mark.parametrize(
    ("script", "ok", "words"),
    [
        (f"echo '{json.dumps(VERSIONS)}'", True, "torch 2, torchvision 1, numpy 1.26, NVIDIA Test"),
        (f"echo '{json.dumps(VERSIONS | {'gpu': ''})}'", False, "sees no GPU"),
        ("echo 'No module named torch' >&2; exit 1", False, "No module named torch"),
    ],
)
def test_the_models_environment_is_asked_for_its_torch(
    tmp_path: Path, script: str, ok: bool, words: str
) -> None:
    program(tmp_path / "bin" / "python", f"#!/bin/sh\n{script}\n")
    told, versions = found.environment(tmp_path, on_gpu=True)
    assert (told.ok, bool(versions)) == (ok, ok)
    assert words in told.text


def test_an_environment_that_is_not_there_is_said_how_to_make(tmp_path: Path) -> None:
    assert "make gpu-check" in found.environment(tmp_path, on_gpu=True)[0].text


# -- the models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [None, 1])
def test_the_configurations_are_tritons(tmp_path: Path, gpu: int | None) -> None:
    """As its own parser reads them; batches of theirs may be merged."""
    write_repository(tmp_path / "models", gpu=gpu)
    for net in NETS:
        text = (tmp_path / "models" / net.name / "config.pbtxt").read_text()
        info = model_info(text_format.Parse(text, pb.ModelConfig()), "")
        assert (info.name, info.lone_reason) == (net.name, "")
        assert info.devices == ((f"cpu:{net.name}:0",) if gpu is None else ("gpu:1",))
        assert info.inputs["INPUT"].dims == net.dims
        assert info.outputs["OUTPUT"].dims == net.out


def test_the_repository_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "models" / "old").mkdir(parents=True)
    write_repository(tmp_path / "models", NETS[:1], gpu=0)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["gpu_copy"]
    copied = tmp_path / "models" / "gpu_copy" / "1" / "model.py"
    assert copied.read_bytes() == MODEL.read_bytes()


def test_the_model_reads_the_parameters_that_the_configurations_give() -> None:
    """It runs in Triton with torch, neither of which is here."""
    tree = ast.parse(MODEL.read_text())
    (model,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and "Triton" in n.name]
    methods = {n.name for n in model.body if isinstance(n, ast.FunctionDef)}
    assert {"initialize", "execute"} <= methods
    words = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert {"net", "seed", "INPUT", "OUTPUT", "identity"} <= words
    assert all(f'"{key}"' in config_text(NETS[0], gpu=0) for key in ("net", "seed"))


# -- the run ---------------------------------------------------------------------------------------


class Triton:
    """Instead of an embedded one."""

    failed: dict[str, str] = {}  # noqa: RUF012  # set by a test

    def __init__(self, config: Any) -> None:
        self.failed_models = self.failed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to stop."""


def stage(monkeypatch: pytest.MonkeyPatch, *, equal: bool = True, visits: int = 9) -> None:
    """All is there, and the steps answer at once."""
    entry = {"model": "m", "rows": 1, "batches": 4, "bytes": 64, "equal": equal, "worst": 0.5}

    def step(*made: dict[str, Any]) -> Callable[..., Any]:
        async def run(*_: object) -> list[dict[str, Any]]:
            return list(made)

        return run

    def timed(transport: str) -> dict[str, Any]:
        figures = {"p50_ms": 2.0, "p90_ms": 3.0, "cpu_us": 50.0}
        return {"model": NETS[-1].name, "rows": 32, "transport": transport} | figures

    async def profiled(*_: object) -> dict[str, str]:
        return {"command": "tritonsched profile", "file": "gpu.yaml"}

    rule = {"rule": "lite", "transport": "cuda", "rate": 10.0, "goodput": 9.0}
    shares = {"in_time": "90.0%", "refused": 1, "late": 0}
    seen = [Found("driver", True, "999")]
    monkeypatch.setattr(kit, "EmbeddedTriton", Triton)
    monkeypatch.setattr(Triton, "failed", {})
    monkeypatch.setattr(found, "first", lambda: iter(seen))
    monkeypatch.setattr(
        found, "environment", lambda *_, on_gpu: (Found("torch", True, "2"), VERSIONS)
    )
    monkeypatch.setattr(live, "equal", step(entry))

    async def visited(*_: object, cuda: bool, arguments: object) -> dict[str, Any]:
        batches = {"cuda" if cuda else "system": visits}
        shown = {"model": "m", "regions": "r", "clients": 8, "requests": 48}
        return shown | {"equal": True, "batches": batches}

    monkeypatch.setattr(kit, "visited", visited)
    monkeypatch.setattr(live, "transports", step(timed("cuda"), timed("system")))
    monkeypatch.setattr(live, "policies", step(rule | shares))
    monkeypatch.setattr(kit, "profiled", profiled)


def run(tmp_path: Path, *more: str) -> tuple[int, dict[str, Any]]:
    places = ["--out", str(tmp_path / "out"), "--run-dir", str(tmp_path / "run")]
    code = kit.main([*places, *more])
    written = list((tmp_path / "out").glob("*.json"))
    return code, json.loads(written[0].read_text()) if written else {}


def test_without_a_gpu_nothing_is_run_and_the_exit_code_is_3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(monkeypatch)
    missing = [Found("Python", True, "3.11"), Found("driver", False, "no nvidia-smi")]
    monkeypatch.setattr(found, "first", lambda: iter(missing))
    assert run(tmp_path) == (3, {})
    out = capsys.readouterr().out
    assert "MISSING  driver: no nvidia-smi" in out
    assert "nothing was run" in out


def test_only_to_look_starts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage(monkeypatch)
    monkeypatch.setattr(found, "environment", None)  # not to be asked
    assert run(tmp_path, "--first") == (0, {})


def test_a_whole_run_is_reported_with_machine_versions_and_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage(monkeypatch)
    code, made = run(tmp_path)
    assert (code, made["outcome"]) == (0, "all answers equal; all steps done")
    (page,) = (tmp_path / "out").glob("*.md")
    text = page.read_text()
    for words in (
        "random weights",
        "| driver | yes | 999 |",
        "| torch | 2 |",
        "| m | 1 | 4 | 64 | yes | 0.5 |",
        "| lite | cuda | 10.0 | 9.0 | 90.0% | 1 | 0 |",
        "`tritonsched profile` wrote",
        "processor",
    ):
        assert words in text


def test_answers_that_differ_fail_and_no_figure_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage(monkeypatch, equal=False)
    code, made = run(tmp_path)
    assert (code, "transports" in made) == (1, False)
    assert "differ" in made["outcome"]


def test_clients_whose_regions_were_not_used_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Equal answers another way are no success."""
    stage(monkeypatch, visits=0)
    code, made = run(tmp_path)
    assert (code, "transports" in made) == (1, False)
    assert "regions" in made["outcome"]


def test_batches_are_counted_by_transport() -> None:
    text = 'tritonsched_backend_batches{transport="cuda"} 3.0\nother{transport="cuda"} 4\n'
    assert batches_of(text) == {"cuda": 3}


def test_a_model_that_does_not_load_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage(monkeypatch)
    monkeypatch.setattr(Triton, "failed", {"resnet50": "no torch"})
    code, made = run(tmp_path)
    assert code == 1
    assert "resnet50" in made["outcome"]


def test_a_rehearsal_says_that_it_is_one_and_stays_out_of_the_profiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage(monkeypatch)
    with pytest.raises(SystemExit):
        kit.main(["--rehearse"])
    code, made = run(tmp_path, "--rehearse")
    assert code == 0
    assert made["rehearsal"] is True
    assert (tmp_path / "out" / "gpu-rehearsal.md").read_text().count("REHEARSAL") == 1


def test_figures_of_another_transport_are_a_fault() -> None:
    server: Any = SimpleNamespace(
        batches_cuda=3, batches_shm=1, batches_inline=0, transport_info="system"
    )
    live.require_used(server, "cuda", 3)
    with pytest.raises(live.KitFault, match="4 batches were to go by cuda"):
        live.require_used(server, "cuda", 4)


def test_the_ways_that_were_taken_are_told_by_the_counts() -> None:
    """A figure of a transport that had no room would be another's."""
    before = {"cuda": 2, "system": 0, "inline": 5}
    assert live.taken(before, before | {"cuda": 9}) == "cuda"
    assert live.taken(before, before | {"cuda": 9, "inline": 6}) == "cuda, inline"


def test_a_load_is_summed_over_its_classes() -> None:
    row = {"sent": 10, "served": 8, "late": 1, "refused": {"queue-full": 1}}
    made = live.summed({"goodput_per_s": 8.04, "classes": {"a": row, "b": row}})
    assert made == {"goodput": 8.0, "in_time": "80.0%", "refused": 2, "late": 2}


def test_parts_that_did_not_run_leave_no_empty_table() -> None:
    made = {
        "made": {"date": "d", "tritonsched": "0", "commit": "c", "command": "x"},
        "rehearsal": False,
        "outcome": "FAILED: x",
        "hardware": {"cpu": "p", "cores": 1, "gpus": [{"name": "G", "driver": "1"}]},
        "found": [],
    }
    text = report.markdown(made)
    assert "| gpu:0 | G, driver 1 |" in text
    assert text.count("## ") == 1

"""The parts of the embedded Triton that need no Triton: files, state, proof, set-up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from tritonsched.backend import embedded, embedded_env, embedded_proof, prepare
from tritonsched.backend import embedded_state as state
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton, EmbeddedTritonError
from tritonsched.backend.emulated_gpu import build as emulated_gpu

ROOT = Path(__file__).parents[2]
TOKEN = "tritonsched-0123456789abcdef"


def echo_reply(values: np.ndarray[Any, Any], raw: bytes | None = None) -> Any:
    """What an echo model answers, or what a broken one would."""
    reply = service_pb2.ModelInferResponse()
    reply.outputs.add(name="OUTPUT", datatype="FP32", shape=values.shape)
    reply.raw_output_contents.append(values.tobytes() if raw is None else raw)
    return reply


# -- the proof ----------------------------------------------------------------------------------


def test_a_right_echo_has_no_fault() -> None:
    """The request's own bytes, sent back."""
    request = embedded_proof.proof_request("echo")
    values = embedded_proof.proof_values()
    assert request.raw_input_contents[0] == values.tobytes()
    assert embedded_proof.fault_of(echo_reply(values)) == ""


def test_an_answer_without_bytes_is_the_numpy_trap() -> None:
    """Right shape, right dtype, status OK and nothing in it: what numpy 2 does."""
    fault = embedded_proof.fault_of(echo_reply(embedded_proof.proof_values(), raw=b""))
    assert fault == f"the answer has 0 bytes instead of {embedded_proof.proof_values().nbytes}"
    assert "numpy<2" in embedded_proof.numpy_trap(fault, "/env")


def test_wrong_values_are_counted() -> None:
    """An arange that arrived as zeros, as numpy 2 also does."""
    values = embedded_proof.proof_values()
    fault = embedded_proof.fault_of(echo_reply(np.zeros_like(values)))
    assert fault == f"{values.size} of {values.size} values came back wrong"


def test_a_wrong_shape_is_a_fault() -> None:
    """One output, of the shape sent."""
    assert "shape" in embedded_proof.fault_of(echo_reply(np.zeros((1, 2), np.float32)))
    assert "shape" in embedded_proof.fault_of(service_pb2.ModelInferResponse())


async def test_an_endpoint_that_is_not_there_does_not_answer() -> None:
    """Refused, not raised. Port 1 is reserved and nobody's."""
    assert not await embedded_proof.answers("127.0.0.1:1", "/")


# -- configuration and ports --------------------------------------------------------------------


def config_of(directory: Path, **fields: Any) -> EmbeddedConfig:
    return EmbeddedConfig(
        repository=directory, environment=directory / "env", run_dir=directory / "run", **fields
    )


def test_a_repository_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    """Before anything is started, with the option to use."""
    with pytest.raises(EmbeddedTritonError, match="with --repository"):
        config_of(tmp_path / "nowhere")


def test_a_port_out_of_range_is_refused(tmp_path: Path) -> None:
    """65536 is one too many."""
    with pytest.raises(EmbeddedTritonError, match="65536"):
        config_of(tmp_path, grpc_port=65536)


def test_ports_given_are_kept_and_the_others_differ() -> None:
    """Free ones are found together, so none is found twice."""
    ports = embedded._fill_ports((0, 0, 0))
    assert len(set(ports)) == 3
    assert embedded._fill_ports((ports[0], 0, ports[2]))[::2] == (ports[0], ports[2])


async def test_what_needs_a_started_triton_says_so(tmp_path: Path) -> None:
    """wait, restart and pid name the call that is missing; stop is harmless."""
    triton = EmbeddedTriton(config_of(tmp_path))
    await triton.stop()
    for broken in (triton.wait, triton.restart):
        with pytest.raises(EmbeddedTritonError, match="call start"):
            await broken()
    with pytest.raises(EmbeddedTritonError, match="call start"):
        _ = triton.pid


async def test_a_failed_start_gives_the_run_directory_back(tmp_path: Path) -> None:
    """No environment: the error says how to make it, and nothing stays locked."""
    triton = EmbeddedTriton(config_of(tmp_path))
    for _ in range(2):
        with pytest.raises(embedded_env.TritonMissing, match="make install"):
            await triton.start()
    with state.locked(tmp_path / "run"):
        pass


# -- the environment ----------------------------------------------------------------------------


def test_an_environment_without_the_wheel_is_named(tmp_path: Path) -> None:
    """Which part is missing, of what."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    with pytest.raises(embedded_env.TritonMissing, match=r"tritonserver of nvidia-pytriton"):
        embedded_env.find_installation(tmp_path)


def test_an_environment_whose_python_fails_is_named(tmp_path: Path) -> None:
    """A file that is no interpreter."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(embedded_env.TritonMissing, match="does not run"):
        embedded_env.find_installation(tmp_path)


def installation(directory: Path, version: str = "3.11") -> embedded_env.Installation:
    return embedded_env.Installation(
        environment=directory,
        server=directory / "tritonserver",
        libraries=directory / "libs",
        python_backend=directory / "python",
        stub=directory / version / "stub",
        libpython_dirs=(directory,),
    )


def test_the_environments_python_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton takes the first python3 in PATH; PYTHON* of the sidecar must not reach its models."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/cuda")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    variables = embedded_env.triton_environment(installation(tmp_path), tmp_path, TOKEN)
    assert variables["PATH"].split(":")[0] == str(tmp_path / "bin")
    assert variables["LD_LIBRARY_PATH"] == f"{tmp_path / 'libs'}:{tmp_path}:/cuda"
    assert variables[embedded_env.TOKEN_VARIABLE] == TOKEN
    assert variables["OMP_NUM_THREADS"] == "2"
    assert "PYTHONPATH" not in variables


def test_a_missing_libpython_is_named_with_its_package(tmp_path: Path) -> None:
    """The stub of the wheel links to it; a Debian without libpython3.x cannot start a model."""
    text = embedded_env.missing_libpython(installation(tmp_path, "3.99"))
    assert text == "libpython3.99.so.1.0 is missing: apt install libpython3.99"
    (tmp_path / "libpython3.99.so.1.0").touch()
    assert embedded_env.missing_libpython(installation(tmp_path, "3.99")) == ""


def test_only_our_own_echo_is_trusted_as_proof(tmp_path: Path) -> None:
    """A user's model may be called echo and do what it likes."""
    packaged = [tmp_path, embedded_env.PROOF_REPOSITORY]
    assert embedded_env.proof_model(tmp_path) == ("tritonsched_echo", packaged)
    shutil.copytree(ROOT / "model_repository" / "echo", tmp_path / "echo")
    assert embedded_env.proof_model(tmp_path) == ("echo", [tmp_path])
    (tmp_path / "echo" / "1" / "model.py").write_text("something else")
    assert embedded_env.proof_model(tmp_path) == ("tritonsched_echo", packaged)


# -- the state of a run -------------------------------------------------------------------------


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Tokens differ from run to run."""
    one = state.with_process(state.new_state(), os.getpid())
    state.save_state(tmp_path, one)
    found = state.load_state(tmp_path)
    assert found is not None
    assert (found.token, found.pid) == (one.token, os.getpid())
    assert one.start_ticks == state.start_ticks(os.getpid())
    assert state.new_state().token != one.token


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"token": 5}',
        '{"token": "tritonsched-"}',
        '{"token": "tritonsched-*"}',
        '{"token": "../../etc/passwd"}',
        '{"token": "tritonsched-0123456789abcd/*"}',
    ],
)
def test_a_state_file_that_cannot_be_trusted_is_none(tmp_path: Path, text: str) -> None:
    """Its token selects processes to kill and files to remove: never by a pattern from outside."""
    (tmp_path / state.STATE_FILE).write_text(text)
    assert state.load_state(tmp_path) is None


def test_a_sweep_ends_only_what_holds_the_token() -> None:
    """A process of another run, or of another program, is left alone."""
    script = "import sys; sys.stdin.read()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE}
    variables = {**os.environ, embedded_env.TOKEN_VARIABLE: TOKEN}
    with (
        subprocess.Popen([sys.executable, "-c", script], **pipes) as stranger,
        subprocess.Popen([sys.executable, "-c", script], env=variables, **pipes) as ours,
    ):
        assert state._sweep(TOKEN) == [f"process {ours.pid}"]
        assert ours.wait() == -9
        assert stranger.poll() is None
        stranger.kill()


async def test_a_sweep_removes_the_regions_of_its_token_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regions are called by the prefix that Triton was started with."""
    shm = tmp_path / "shm"
    shm.mkdir()
    monkeypatch.setattr(state, "SHM_DIR", shm)
    for name in (f"{TOKEN}-1", f"{TOKEN}-2", "tritonsched-fedcba9876543210-1", "other"):
        (shm / name).touch()
    state.save_state(tmp_path, state.RunState(token=TOKEN))
    await state.sweep(tmp_path, state.RunState(token=TOKEN))
    assert {p.name for p in shm.iterdir()} == {"tritonsched-fedcba9876543210-1", "other"}
    assert state.load_state(tmp_path) is None


def test_a_locked_run_directory_is_refused(tmp_path: Path) -> None:
    """And free again afterwards."""
    with state.locked(tmp_path):
        second = state.locked(tmp_path)
        with pytest.raises(state.RunDirInUse, match="--run-dir"):
            second.__enter__()
    with state.locked(tmp_path):
        pass


def test_a_process_that_is_not_there_has_no_start() -> None:
    """Process ids end at 2^22."""
    assert state.start_ticks(2**22 + 1) is None


# -- building and preparing ---------------------------------------------------------------------


def test_the_library_is_built_once_and_has_triton_entry_points(tmp_path: Path) -> None:
    """The name holds the sources' hash: an existing file is the right one."""
    library = emulated_gpu.build(tmp_path)
    before = library.stat().st_mtime_ns
    assert emulated_gpu.build(tmp_path) == library
    assert library.stat().st_mtime_ns == before
    assert b"TRITONBACKEND_ModelInstanceExecute" in library.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [library.name]


def test_without_cc_the_error_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty PATH has no compiler."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(emulated_gpu.CompilerMissing, match="apt install gcc"):
        emulated_gpu.build(tmp_path / "out")


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message is the reason; no half-made library stays."""
    cc = tmp_path / "cc"
    cc.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    cc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(emulated_gpu.BuildFailed, match="no such header"):
        emulated_gpu.build(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_are_made_once_and_made_again_if_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded, so the same bytes each time; a cut file does not count as there."""
    monkeypatch.setattr(prepare, "MLP_SHAPE", (3, 8, 8))
    weights = tmp_path / prepare.MLP_WEIGHTS
    assert prepare.prepare_repository(tmp_path) == [], "no mlp in this repository"
    weights.parent.mkdir(parents=True)
    assert prepare.prepare_repository(tmp_path) == [weights]
    content = weights.read_bytes()
    assert prepare.prepare_repository(tmp_path) == []
    weights.write_bytes(content[:100])
    assert prepare.prepare_repository(tmp_path) == [weights]
    assert weights.read_bytes() == content
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


def test_the_set_up_command_prepares_and_builds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what it made, and that a compiler is missing, and fails on neither."""
    build_dir = tmp_path / "build"
    prepare.main([str(tmp_path), str(build_dir)])
    assert capsys.readouterr().out == f"{next(build_dir.iterdir())}\n"
    monkeypatch.setenv("PATH", "/nowhere")
    prepare.main([str(tmp_path), str(tmp_path / "other")])
    assert "apt install gcc" in capsys.readouterr().out


def test_the_repositorys_emulated_models_are_what_the_helper_writes() -> None:
    """Committed configurations and generated ones do not drift apart."""
    for name, a_us, b_us, seed in (("emulated_a", 5000, 600, 1), ("emulated_b", 2000, 200, 2)):
        text = prepare.emulated_model_config(name, gpu="gpu0", a_us=a_us, b_us=b_us, seed=seed)
        committed = (ROOT / "model_repository" / name / "config.pbtxt").read_text()
        lines = [line for line in committed.splitlines() if not line.startswith("#")]
        assert lines == text.splitlines()[1:], "all but the name, which the directory gives"


def test_a_generated_config_quotes_and_carries_a_dynamic_batcher() -> None:
    """What tests and benchmarks vary."""
    text = prepare.emulated_model_config(
        "m", gpu='g"0', a_us=1, b_us=2, dynamic_batching="max_queue_delay_microseconds: 5"
    )
    assert 'key: "gpu" value: { string_value: "g\\"0" }' in text
    assert "dynamic_batching { max_queue_delay_microseconds: 5 }" in text
    assert json.dumps([3, 32, 32]) in text
    assert "STATS" not in prepare.emulated_model_config(
        "m", gpu="g", a_us=1, b_us=2, with_stats=False
    )

"""The embedded Triton, with the real server: it answers right, dies clean, leaves nothing."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.integration.conftest import MODEL_REPOSITORY, ROOT, TRITON_ENVIRONMENT, TritonFactory
from tests.integration.raw_triton import raw_client
from tritonsched.backend import embedded
from tritonsched.backend import embedded_state as state
from tritonsched.backend.embedded import EmbeddedTriton, EmbeddedTritonError
from tritonsched.backend.prepare import (
    emulated_model_config,
    mlp_weights,
    write_emulated_model,
)

END_TIMEOUT_S = 60  # Triton's own shutdown takes 1 to 4 s; a bound, not an expectation


@pytest.fixture
def small_repository(tmp_path: Path) -> Path:
    """One model on an emulated GPU: loads at once, needs no stub."""
    repository = tmp_path / "models"
    config = emulated_model_config("quick", gpu="g", a_us=0, b_us=0, dims=(4,))
    write_emulated_model(repository, "quick", config)
    return repository


@pytest.fixture
def echo_repository(tmp_path: Path) -> Path:
    """Only `echo`: a python model, so with a stub process and a shared memory region."""
    repository = tmp_path / "models"
    shutil.copytree(MODEL_REPOSITORY / "echo", repository / "echo")
    return repository


def regions_of(token: str) -> list[str]:
    return [path.name for path in state.SHM_DIR.glob(f"{token}*")]


def token_of(triton: EmbeddedTriton) -> str:
    found = state.load_state(triton.config.run_dir)
    assert found is not None
    assert found.pid == triton.pid
    return found.token


@asynccontextmanager
async def ended(pid: int) -> AsyncIterator[None]:
    """Leave the block when that process has ended."""
    over = asyncio.Event()
    handle = os.pidfd_open(pid)
    asyncio.get_running_loop().add_reader(handle, over.set)
    try:
        yield
        async with asyncio.timeout(END_TIMEOUT_S):
            await over.wait()
    finally:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)


async def test_echo_returns_the_values_it_was_sent(triton: EmbeddedTriton) -> None:
    """Values and lengths survive the python backend, whatever the number of columns."""
    async with raw_client(triton.grpc_address) as client:
        for columns in (1, 5, 4097):
            sent = np.random.default_rng(columns).standard_normal((3, columns), np.float32)
            answer = await client.infer("echo", INPUT=sent)
            np.testing.assert_array_equal(answer["OUTPUT"], sent)


async def test_mlp_computes_its_three_layers(triton: EmbeddedTriton) -> None:
    """The answer is that of the seeded weights; 1e-3 relative, as the order of sums differs."""
    sent = np.random.default_rng(3).standard_normal((2, 2048), np.float32)
    expected = sent
    for layer in mlp_weights():
        expected = np.maximum(expected @ layer, 0)
    async with raw_client(triton.grpc_address) as client:
        answer = await client.infer("mlp", INPUT=sent)
    np.testing.assert_allclose(answer["OUTPUT"], expected, rtol=1e-3, atol=1e-4)


async def test_every_model_of_the_repository_loads(triton: EmbeddedTriton) -> None:
    """None of the repository's models fails, and the proof needs no model beside them."""
    assert triton.failed_models == {}
    names = {path.parent.name for path in MODEL_REPOSITORY.glob("*/config.pbtxt")}
    async with raw_client(triton.grpc_address) as client:
        assert await client.model_states() == dict.fromkeys(names, "READY")


async def test_a_repository_without_echo_is_proven_by_the_packaged_one(
    triton_factory: TritonFactory, small_repository: Path
) -> None:
    """The proof always runs."""
    triton = await triton_factory(small_repository)
    async with raw_client(triton.grpc_address) as client:
        assert await client.model_states() == {"quick": "READY", "tritonsched_echo": "READY"}


async def test_only_the_named_models_are_loaded(triton_factory: TritonFactory) -> None:
    """`models` narrows a repository down, in Triton's explicit mode."""
    triton = await triton_factory(MODEL_REPOSITORY, models=("emulated_a",))
    async with raw_client(triton.grpc_address) as client:
        states = await client.model_states()
    assert {name for name, known in states.items() if known == "READY"} == {"emulated_a", "echo"}
    assert triton.failed_models == {}


async def test_a_broken_model_is_reported_and_the_others_serve(
    triton_factory: TritonFactory, small_repository: Path
) -> None:
    """One bad configuration does not keep a server from starting."""
    config = emulated_model_config("broken", gpu="g", a_us="five", b_us=1)  # type: ignore[arg-type]  # the fault under test
    write_emulated_model(small_repository, "broken", config)
    triton = await triton_factory(small_repository)
    assert set(triton.failed_models) == {"broken"}
    assert "parameter 'a_us': 'five' is not a number" in triton.failed_models["broken"]
    async with raw_client(triton.grpc_address) as client:
        answer = await client.infer("quick", INPUT=np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(answer["OUTPUT"], [[4, 1], [4, 1]])


def numpy_2_environment(directory: Path) -> Path:
    """The Triton environment with the product's numpy 2 in the place of its own."""
    packages = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    (directory / "bin").mkdir(parents=True)
    (directory / packages).mkdir(parents=True)
    shutil.copy(TRITON_ENVIRONMENT / "pyvenv.cfg", directory)
    for name in ("python", "python3"):
        interpreter = (TRITON_ENVIRONMENT / "bin" / "python").resolve()
        (directory / "bin" / name).symlink_to(interpreter)
    for name in ("pytriton", "nvidia_pytriton.libs"):
        (directory / packages / name).symlink_to(TRITON_ENVIRONMENT / packages / name)
    product = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        (directory / packages / name).symlink_to(product / name)
    return directory


async def test_numpy_2_under_triton_is_refused_at_start(
    triton_factory: TritonFactory, echo_repository: Path, tmp_path: Path
) -> None:
    """The real trap: Triton says it is ready, status is OK, and the answer has no bytes."""
    environment = numpy_2_environment(tmp_path / "numpy2")
    triton = await triton_factory(echo_repository, started=False, environment=environment)
    with pytest.raises(EmbeddedTritonError, match="numpy<2"):
        await triton.start()
    assert not triton.is_running


async def test_a_stopped_triton_leaves_no_process_and_no_region(
    triton_factory: TritonFactory, echo_repository: Path
) -> None:
    """Server, stubs, regions and the state file are gone; the run directory is free again."""
    triton = await triton_factory(echo_repository)
    token = token_of(triton)
    assert len(state.processes_of(token)) == 2
    assert regions_of(token)
    await triton.stop()
    assert state.processes_of(token) == []
    assert regions_of(token) == []
    assert state.load_state(triton.config.run_dir) is None
    with state.locked(triton.config.run_dir):
        pass


async def test_a_killed_triton_is_noticed_and_comes_back_on_the_same_ports(
    triton_factory: TritonFactory, echo_repository: Path
) -> None:
    """`wait` tells the signal; `restart` removes the stubs that outlived the server."""
    triton = await triton_factory(echo_repository)
    addresses = (triton.http_address, triton.grpc_address, triton.metrics_address)
    before = state.processes_of(token_of(triton))
    os.kill(triton.pid, signal.SIGKILL)
    assert await triton.wait() == -signal.SIGKILL
    await triton.restart()
    assert (triton.http_address, triton.grpc_address, triton.metrics_address) == addresses
    after = state.processes_of(token_of(triton))
    assert len(after) == 2
    assert not set(before) & set(after)
    async with raw_client(triton.grpc_address) as client:
        answer = await client.infer("echo", INPUT=np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(answer["OUTPUT"], np.ones((1, 3)))


async def test_a_stop_gives_up_a_restart_under_way(
    triton_factory: TritonFactory, echo_repository: Path
) -> None:
    """The supervisor's restart ends with an error it can read, and nothing runs afterwards."""
    triton = await triton_factory(echo_repository)
    token = token_of(triton)
    os.kill(triton.pid, signal.SIGKILL)
    await triton.wait()
    restart = asyncio.create_task(triton.restart())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.shield(restart)
    await triton.stop()
    with pytest.raises(EmbeddedTritonError, match="stopped while restarting"):
        await restart
    assert not triton.is_running
    assert state.processes_of(token) == []


async def test_a_triton_that_does_not_come_up_in_time_is_ended(
    triton_factory: TritonFactory, echo_repository: Path
) -> None:
    """The bound is named, and nothing stays behind."""
    triton = await triton_factory(echo_repository, started=False, ready_timeout_s=0.001)
    with pytest.raises(EmbeddedTritonError, match=r"not ready within 0\.001 s"):
        await triton.start()
    assert not triton.is_running
    assert state.load_state(triton.config.run_dir) is None


async def test_a_running_triton_is_not_started_twice(
    triton_factory: TritonFactory, small_repository: Path
) -> None:
    """The second start is refused; the first goes on."""
    triton = await triton_factory(small_repository)
    with pytest.raises(EmbeddedTritonError, match="runs already"):
        await triton.start()
    assert triton.is_running


async def test_regions_of_a_server_killed_with_its_stubs_are_removed(
    triton_factory: TritonFactory, echo_repository: Path
) -> None:
    """As when the kernel kills a container: nobody of Triton is left to clean up."""
    triton = await triton_factory(echo_repository)
    token = token_of(triton)
    for pid in sorted(state.processes_of(token), reverse=True):
        os.kill(pid, signal.SIGKILL)
    await triton.wait()
    await triton.stop()
    assert regions_of(token) == []


async def test_the_next_start_ends_an_orphan(
    triton_factory: TritonFactory, echo_repository: Path
) -> None:
    """A Triton whose sidecar is gone is found by its token and ended, with its stubs."""
    orphan = await triton_factory(echo_repository)
    token = token_of(orphan)
    orphan._held.close()  # what the kernel does to the lock of a killed sidecar
    heir = await triton_factory(echo_repository, run_dir=orphan.config.run_dir)
    assert await orphan.wait() == -signal.SIGKILL
    assert f"process {orphan.pid}" in heir.notes[0]
    assert state.processes_of(token) == []
    assert regions_of(token) == []
    assert heir.is_running


SIDECAR = """
import asyncio, sys
from pathlib import Path
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton

async def main():
    repository, environment, run_dir, build_dir = map(Path, sys.argv[1:])
    config = EmbeddedConfig(repository, environment, run_dir, build_dir=build_dir)
    async with EmbeddedTriton(config) as triton:
        sys.stdout.write(f"{triton.pid}\\n")
        sys.stdout.flush()
        await triton.wait()

asyncio.run(main())
"""


async def test_triton_ends_when_its_sidecar_is_killed(
    echo_repository: Path, tmp_path: Path, build_dir: Path
) -> None:
    """SIGKILL of the sidecar: nobody asks Triton to stop but the kernel."""
    run_dir = tmp_path / "run"
    sidecar = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SIDECAR, echo_repository, TRITON_ENVIRONMENT, run_dir, build_dir),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert sidecar.stdout is not None
    pid = int(await sidecar.stdout.readline())
    found = state.load_state(run_dir)
    assert found is not None
    async with ended(pid):
        sidecar.kill()
        await sidecar.wait()
    await state.sweep(run_dir, found)
    assert state.processes_of(found.token) == []
    assert regions_of(found.token) == []


async def test_a_run_directory_has_one_sidecar(
    triton_factory: TritonFactory, small_repository: Path
) -> None:
    """A second one is refused and hurts neither the first nor its state."""
    first = await triton_factory(small_repository)
    second = await triton_factory(small_repository, started=False, run_dir=first.config.run_dir)
    with pytest.raises(state.RunDirInUse, match="in use by another sidecar"):
        await second.start()
    await second.stop()
    assert first.is_running
    assert token_of(first)


@pytest.mark.parametrize("name", ["http_port", "grpc_port", "metrics_port"])
async def test_a_taken_port_is_named(
    triton_factory: TritonFactory, small_repository: Path, name: str
) -> None:
    """A port that the operator chose is not changed behind his back."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        triton = await triton_factory(small_repository, started=False, **{name: port})
        with pytest.raises(EmbeddedTritonError, match=str(port)):
            await triton.start()
    assert not triton.is_running


async def test_a_port_lost_to_another_process_is_replaced(
    triton_factory: TritonFactory, small_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our look and Triton's bind anybody may take a free port: Triton gets another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        lost = taken.getsockname()[1]
        fill_ports, chosen = embedded._fill_ports, list[tuple[int, int, int]]()

        def fill(wanted: tuple[int, int, int]) -> tuple[int, int, int]:
            http, grpc_, metrics = fill_ports(wanted)
            chosen.append((http, grpc_, metrics if chosen else lost))
            return chosen[-1]

        monkeypatch.setattr(embedded, "_fill_ports", fill)
        triton = await triton_factory(small_repository)
        assert len(chosen) == 2
        assert not triton.metrics_address.endswith(f":{lost}")


async def test_one_that_crashes_at_its_start_is_started_again(
    triton_factory: TritonFactory, small_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    come_up, tries = EmbeddedTriton._come_up, list[int]()

    async def crash_first(triton: EmbeddedTriton, model: str) -> str:
        tries.append(triton.pid)
        if len(tries) == 1:
            os.kill(triton.pid, signal.SIGABRT)
        return await come_up(triton, model)

    monkeypatch.setattr(EmbeddedTriton, "_come_up", crash_first)
    triton = await triton_factory(small_repository)
    assert triton.is_running
    assert [pid == triton.pid for pid in tries] == [False, True]
    assert [note for note in triton.notes if "ended with code -6" in note]


async def test_the_log_of_the_run_before_is_kept(
    triton_factory: TritonFactory, small_repository: Path
) -> None:
    """Two files at most: this run's and the one before."""
    triton = await triton_factory(small_repository)
    await triton.restart()
    logs = sorted(path.name for path in triton.config.run_dir.glob("triton.log*"))
    assert logs == ["triton.log", "triton.log.1"]
    assert "Started GRPCInferenceService" in triton.log_path.read_text()


async def test_an_option_that_triton_refuses_ends_the_start_with_its_words(
    triton_factory: TritonFactory, small_repository: Path
) -> None:
    """The error holds what Triton said, not only that it ended."""
    triton = await triton_factory(small_repository, started=False, extra_args=("--no-such",))
    with pytest.raises(EmbeddedTritonError, match=r"(?s)ended with code.*no-such"):
        await triton.start()


def test_launch_runs_nothing_when_the_parent_is_gone() -> None:
    """Between fork and prctl the parent may die: then no signal would ever come."""
    script = ROOT / "tritonsched" / "backend" / "launch.py"

    def run(parent: int) -> str:
        command = [sys.executable, "-I", "-S", str(script), str(parent), "/bin/echo", "ran"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert run(os.getpid()) == "ran\n"
    assert run(1 if os.getpid() != 1 else 2) == ""

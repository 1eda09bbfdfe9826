"""The emulated GPU in a real Triton, compiled and as a python model: one contract, two ways to run.

Every expected time here is arithmetic: STATS tells when the emulated GPU started and ended a batch
on its own clock, to the nanosecond; nothing measures how long a call took.
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from tests.integration.conftest import TRITON_ENVIRONMENT
from tests.integration.raw_triton import infer_request, outputs_of, raw_client
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.emulated_gpu import build as emulated_gpu
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model

US = 1000  # nanoseconds
IMPLEMENTATIONS = ("compiled", "python")
GOOD: dict[str, dict[str, Any]] = {
    "first": {"gpu": "shared", "a_us": 2000, "b_us": 100},
    "second": {"gpu": "shared", "a_us": 1000, "b_us": 50},
    "slow": {"gpu": "other", "a_us": 700_000, "b_us": 0},
    "table": {"gpu": "t", "a_us": 0, "b_us": 0, "table": "2:100,4:300,8:400", "throttle": "2"},
    "noisy": {"gpu": "n", "a_us": 1000, "b_us": 0, "jitter_pct": 30, "seed": 7},
    "overrun": {"gpu": "o", "a_us": 100, "b_us": 0, "overrun_rate": 0.5, "overrun_factor": 3},
    "image": {"gpu": "i", "a_us": 0, "b_us": 0, "dims": (3, 224, 224)},
    "free": {"gpu": "f", "a_us": 0, "b_us": 0, "dims": (-1,)},
    "joined": {
        "gpu": "j",
        "a_us": 10,
        "b_us": 1,
        "dynamic_batching": "preferred_batch_size: [ 6 ] max_queue_delay_microseconds: 60000000",
    },
    "single": {"gpu": "s", "a_us": 5, "b_us": 0, "max_batch_size": 0},
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bad_number": ({"gpu": "g", "a_us": "1e", "b_us": 0}, "'a_us'"),
    "bad_range": ({"gpu": "g", "a_us": 0, "b_us": 0, "overrun_rate": 1.5}, "'overrun_rate'"),
    "bad_table": ({"gpu": "g", "a_us": 0, "b_us": 0, "table": "4:1,2:1"}, "'table'"),
    "bad_seed": ({"gpu": "g", "a_us": 0, "b_us": 0, "seed": "-1"}, "'seed'"),
    "bad_name": ({"gpu": "g", "a_us": 0, "b_us": 0, "a_ms": 1}, "'a_ms'"),
    "no_gpu": ({"gpu": "", "a_us": 0, "b_us": 0}, "'gpu'"),
}


# A python model costs half a second of CPU to load, also where it fails.
BAD_OF = {"compiled": tuple(BAD), "python": ("bad_range", "bad_table", "bad_name", "no_gpu")}


def write_models(repository: Path, bad: Iterable[str], control_file: Path) -> Path:
    """All models of GOOD, those of BAD, and one that follows the control file."""
    for name, options in GOOD.items():
        config = emulated_model_config(name, **({"dims": (4,)} | options))
        write_emulated_model(repository, name, config)
    for name in bad:
        write_emulated_model(
            repository, name, emulated_model_config(name, dims=(4,), **BAD[name][0])
        )
    steered: dict[str, Any] = {"control_file": control_file, "throttle": 2}
    config = emulated_model_config("steered", gpu="c", a_us=100, b_us=0, dims=(4,), **steered)
    write_emulated_model(repository, "steered", config)
    return repository


def no_compiler(build_dir: Path) -> Path:
    raise emulated_gpu.CompilerMissing("no C compiler")


@pytest.fixture(scope="module")
def control_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One an implementation, with a name that needs quoting."""
    return {name: tmp_path_factory.mktemp(name) / 'a "throttle"' for name in IMPLEMENTATIONS}


@pytest.fixture(scope="module")
async def tritons(
    tmp_path_factory: pytest.TempPathFactory, build_dir: Path, control_files: dict[str, Path]
) -> AsyncIterator[dict[str, EmbeddedTriton]]:
    """One Triton an implementation, both for the whole module, as the order of tests is random."""
    async with AsyncExitStack() as stack:
        started = {}
        for name, bad in BAD_OF.items():
            with pytest.MonkeyPatch.context() as patch:
                if name == "python":
                    patch.setattr(emulated_gpu, "build", no_compiler)
                repository = tmp_path_factory.mktemp("models")
                config = EmbeddedConfig(
                    repository=write_models(repository, bad, control_files[name]),
                    environment=TRITON_ENVIRONMENT,
                    run_dir=tmp_path_factory.mktemp("triton"),
                    build_dir=build_dir,
                )
                started[name] = await stack.enter_async_context(EmbeddedTriton(config))
        yield started


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def emulated(tritons: dict[str, EmbeddedTriton], implementation: str) -> EmbeddedTriton:
    """The Triton of that implementation."""
    return tritons[implementation]


@pytest.fixture
def control_file(control_files: dict[str, Path], implementation: str) -> Path:
    """What model `steered` of that Triton follows."""
    return control_files[implementation]


def set_control(control_file: Path, text: str | None) -> None:
    control_file.unlink(missing_ok=True)
    if text is not None:
        control_file.write_text(text)


@contextmanager
def region_of(name: str, content: bytes) -> Iterator[Callable[[], bytes]]:
    """A system shared memory region; what it yields reads it."""
    path = Path("/dev/shm", name)
    path.write_bytes(content)
    try:
        yield path.read_bytes
    finally:
        path.unlink()


async def test_without_a_compiler_the_operator_is_told_in_one_line(
    emulated: EmbeddedTriton, implementation: str
) -> None:
    """The fallback is not silent; the compiled one needs no word."""
    expected = {
        "compiled": [],
        "python": ["the emulated GPU runs as a python model: no C compiler"],
    }
    assert emulated.notes == expected[implementation]


async def stats_of(triton: EmbeddedTriton, model: str, rows: int = 1) -> NDArray[Any]:
    """[start_ns, end_ns, rows, throttle] of a batch of that many rows."""
    async with raw_client(triton.grpc_address) as client:
        answer = await client.infer(model, INPUT=np.ones((rows, 4), np.float32))
    assert (answer["STATS"] == answer["STATS"][0]).all()
    stats: NDArray[Any] = answer["STATS"][0]
    return stats


async def duration_ns(triton: EmbeddedTriton, model: str, rows: int = 1) -> int:
    start_ns, end_ns, _, _ = await stats_of(triton, model, rows)
    return int(end_ns - start_ns)


async def test_a_row_is_answered_by_its_sum_and_its_first_element(
    emulated: EmbeddedTriton,
) -> None:
    """What a client can check; sums in double precision, so exact for these integers."""
    sent = np.random.default_rng(1).integers(-1000, 1000, (5, 4)).astype(np.float32)
    async with raw_client(emulated.grpc_address) as client:
        answer = await client.infer("first", INPUT=sent)
    expected = np.stack([sent.sum(axis=1), sent[:, 0]], axis=1)
    np.testing.assert_array_equal(answer["OUTPUT"], expected)


async def test_a_batch_takes_a_plus_b_times_rows(emulated: EmbeddedTriton) -> None:
    """STATS: the planned time, the rows of the batch, the throttle in force."""
    for rows in (1, 7, 32):
        start_ns, end_ns, batch_rows, throttle = await stats_of(emulated, "first", rows)
        assert end_ns - start_ns == (2000 + 100 * rows) * US
        assert (batch_rows, throttle) == (rows, 1)


async def test_a_table_is_linear_between_and_after_its_entries_and_flat_before(
    emulated: EmbeddedTriton,
) -> None:
    """2:100,4:300,8:400 at throttle 2; beyond 8 rows on with 25 us a row."""
    expected = {1: 200, 2: 200, 3: 400, 4: 600, 6: 700, 8: 800, 16: 1200}
    got = {rows: await duration_ns(emulated, "table", rows) / US for rows in expected}
    assert got == expected


async def test_the_same_seed_gives_the_same_jitter_in_both_implementations(
    emulated: EmbeddedTriton,
) -> None:
    """Golden values; within 1 ns, as both round the same double to nanoseconds."""
    drawn = [await duration_ns(emulated, "noisy") for _ in range(4)]
    np.testing.assert_allclose(drawn, [1336729, 897622, 1328480, 781864], rtol=0, atol=1)


async def test_overruns_happen_at_their_rate(emulated: EmbeddedTriton) -> None:
    """Each batch takes its time or three times that; with this seed both occur."""
    drawn = [await duration_ns(emulated, "overrun") for _ in range(12)]
    assert set(drawn) == {100 * US, 300 * US}


async def test_models_of_one_gpu_never_run_at_the_same_time(emulated: EmbeddedTriton) -> None:
    """Two models, ten batches each, sent at once: every batch starts after the one before ended."""
    models = ["first", "second"] * 10
    batches = await asyncio.gather(*(stats_of(emulated, model) for model in models))
    intervals = sorted((start_ns, end_ns) for start_ns, end_ns, _, _ in batches)
    assert all(left[1] <= right[0] for left, right in pairwise(intervals))
    first_of_second = min(b[0] for b, m in zip(batches, models, strict=True) if m == "second")
    last_of_first = max(b[0] for b, m in zip(batches, models, strict=True) if m == "first")
    assert first_of_second < last_of_first, "one model held the GPU until it had no more work"


async def test_models_of_different_gpus_do_not_wait_for_each_other(
    emulated: EmbeddedTriton,
) -> None:
    """The other GPU's batch, asked for later, starts before the slow one has ended."""
    slow = asyncio.create_task(stats_of(emulated, "slow"))
    others = [await stats_of(emulated, "first") for _ in range(3)]
    assert others[0][0] < (await slow)[1]


async def test_the_control_file_changes_the_throttle_from_the_next_batch_on(
    emulated: EmbeddedTriton, control_file: Path
) -> None:
    """Its number counts while it is there and good; else the parameter's, 2 here."""
    seen = []
    for text in (None, "3", " 0.5\n", "fast", "nan", "-1", "0", "1e9", "", "4"):
        set_control(control_file, text)
        start_ns, end_ns, _, throttle = await stats_of(emulated, "steered")
        assert end_ns - start_ns == throttle * 100 * US
        seen.append(throttle)
    assert seen == [2, 3, 0.5, 2, 2, 2, 2, 2, 2, 4]


async def test_all_requests_handed_over_are_one_batch(emulated: EmbeddedTriton) -> None:
    """With Triton's dynamic batcher: three requests, one execution, each its own rows back."""
    sent = [np.full((rows, 4), rows, np.float32) for rows in (1, 2, 3)]
    async with raw_client(emulated.grpc_address) as client:
        answers = await asyncio.gather(*(client.infer("joined", INPUT=rows) for rows in sent))
    stats = np.concatenate([answer["STATS"] for answer in answers])
    assert (stats == stats[0]).all()
    assert stats[0][2] == 6
    assert stats[0][1] - stats[0][0] == 16 * US
    for rows, answer in zip(sent, answers, strict=True):
        expected = [[4 * len(rows), len(rows)]] * len(rows)
        np.testing.assert_array_equal(answer["OUTPUT"], expected)


async def test_a_model_without_a_batch_dimension_is_one_row(emulated: EmbeddedTriton) -> None:
    """max_batch_size 0: shapes without rows."""
    async with raw_client(emulated.grpc_address) as client:
        answer = await client.infer("single", INPUT=np.array([1, 2, 3, 4], np.float32))
    np.testing.assert_array_equal(answer["OUTPUT"], [10, 1])
    assert answer["STATS"].shape == (4,)
    assert answer["STATS"][2] == 1


async def test_a_tensor_in_many_buffers_is_put_together(emulated: EmbeddedTriton) -> None:
    """A large body over HTTP reaches the backend in pieces that end anywhere."""
    sent = np.random.default_rng(2).integers(0, 256, (2, 3, 224, 224)).astype(np.float32)
    tensor = {
        "name": "INPUT",
        "datatype": "FP32",
        "shape": list(sent.shape),
        "parameters": {"binary_data_size": sent.nbytes},
    }
    head = orjson.dumps({"inputs": [tensor], "outputs": [{"name": "OUTPUT"}]})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    url = f"http://{emulated.http_address}/v2/models/image/infer"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=io.BytesIO(head + sent.tobytes()), headers=headers) as response,
    ):
        answer = orjson.loads(await response.read())
    expected = np.stack([sent.sum(axis=(1, 2, 3)), sent[:, 0, 0, 0]], axis=1)
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (2, 2)), expected)


async def test_shared_memory_in_and_out(emulated: EmbeddedTriton) -> None:
    """Input and output in one system region, as the sidecar sends its batches."""
    sent = np.arange(8, dtype=np.float32).reshape(2, 4)
    name = f"tritonsched-test-{os.getpid()}-{emulated.pid}"
    request = infer_request("first", {"INPUT": sent})
    request.ClearField("raw_input_contents")
    for tensor, offset, size in (
        (request.inputs[0], 0, sent.nbytes),
        (request.outputs.add(name="OUTPUT"), sent.nbytes, 16),
    ):
        tensor.parameters["shared_memory_region"].string_param = name
        tensor.parameters["shared_memory_offset"].int64_param = offset
        tensor.parameters["shared_memory_byte_size"].int64_param = size
    with region_of(name, sent.tobytes() + bytes(16)) as region:
        async with raw_client(emulated.grpc_address) as client:
            register = service_pb2.SystemSharedMemoryRegisterRequest(
                name=name, key=f"/{name}", offset=0, byte_size=sent.nbytes + 16
            )
            await client.stub.SystemSharedMemoryRegister(register)
            await client.stub.ModelInfer(request)
            unregister = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
            await client.stub.SystemSharedMemoryUnregister(unregister)
        answer = np.frombuffer(region()[sent.nbytes :], np.float32).reshape(2, 2)
    np.testing.assert_array_equal(answer, [[6, 0], [22, 4]])


async def test_only_the_outputs_asked_for_are_answered(emulated: EmbeddedTriton) -> None:
    """STATS costs nothing where nobody wants it."""
    request = infer_request("first", {"INPUT": np.ones((1, 4), np.float32)})
    request.outputs.add(name="OUTPUT")
    async with raw_client(emulated.grpc_address) as client:
        answer = outputs_of(await client.stub.ModelInfer(request))
    assert list(answer) == ["OUTPUT"]


async def test_a_request_at_fault_is_answered_and_the_next_one_served(
    emulated: EmbeddedTriton,
) -> None:
    """Rows without elements: an error of that request, nothing more."""
    async with raw_client(emulated.grpc_address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.infer("free", INPUT=np.zeros((2, 0), np.float32))
        assert "INPUT" in (caught.value.details() or "")
        answer = await client.infer("free", INPUT=np.ones((1, 9), np.float32))
    np.testing.assert_array_equal(answer["OUTPUT"], [[9, 1]])


async def test_a_parameter_that_cannot_be_used_is_named(
    emulated: EmbeddedTriton, implementation: str
) -> None:
    """The load error names the model and the parameter; the good models serve."""
    assert set(emulated.failed_models) == set(BAD_OF[implementation])
    for name, reason in emulated.failed_models.items():
        assert f"model '{name}'" in reason
        assert BAD[name][1] in reason


async def test_statistics_count_executions_and_rows(emulated: EmbeddedTriton) -> None:
    """Triton's own statistics know the batches, as of any good backend."""
    await stats_of(emulated, "table", rows=5)
    async with raw_client(emulated.grpc_address) as client:
        request = service_pb2.ModelStatisticsRequest(name="table")
        (model,) = (await client.stub.ModelStatistics(request)).model_stats
    assert model.inference_stats.success.count == model.execution_count
    assert model.inference_count >= 5
    assert 5 in {batch.batch_size for batch in model.batch_stats}

"""What the data path is measured on: models, messages, and a sidecar before a Triton.

Rule: one Triton serves the same model several times, without a batcher, behind its dynamic batcher
with its default, and with delays of DELAYS_US; each on an emulated GPU of its own that gathers the
rows and answers at once, so that only the way there and back costs.
"""

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.bench.loads import Asked
from tests.bench.meter import ROOT
from tests.integration.sidecars import serve_process
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model

SMALL, LARGE = "12 KB", "602 KB"
DIMS = {SMALL: (3, 32, 32), LARGE: (3, 224, 224)}
SIZES = {"small": SMALL, "large": LARGE}
DELAYS_US = (200, 1000)
PLAIN, MERGING = "Triton, no batcher", "Triton, dynamic batcher"
SWEPT = tuple(f"{MERGING}, {delay} µs" for delay in DELAYS_US)
SIDECAR = "sidecar"
BATCHERS = (MERGING, *SWEPT)


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked. prefix: of its models' names. pids: whose CPU counts, by name."""

    name: str
    prefix: str
    grpc: str
    http: str
    pids: dict[str, int]


# -- what is asked --------------------------------------------------------------------------------


def model_name(prefix: str, size: str) -> str:
    return f"{prefix}_{'x'.join(map(str, DIMS[size]))}"


def tensor(size: str) -> bytes:
    return np.random.default_rng(1).random((1, *DIMS[size]), dtype=np.float32).tobytes()


def message(model: str, size: str) -> bytes:
    """What tritonclient sends for one row."""
    made = pb.ModelInferRequest(model_name=model, id="1")
    made.inputs.add(name="INPUT", datatype="FP32", shape=(1, *DIMS[size]))
    made.outputs.add(name="OUTPUT")
    made.raw_input_contents.append(tensor(size))
    serialized: bytes = made.SerializeToString()
    return serialized


def web(model: str, size: str) -> Asked:
    """The same over HTTP/1.1: a JSON head, then the tensor's bytes, both ways."""
    data = tensor(size)
    given = {
        "name": "INPUT", "datatype": "FP32", "shape": [1, *DIMS[size]],
        "parameters": {"binary_data_size": len(data)},
    }  # fmt: skip
    wanted = {"name": "OUTPUT", "parameters": {"binary_data": True}}
    head = json.dumps({"id": "1", "inputs": [given], "outputs": [wanted]}).encode()
    headers = (
        f"Inference-Header-Content-Length: {len(head)}",
        "Content-Type: application/octet-stream",
    )
    return Asked(head + data, f"/v2/models/{model}/infer", headers, http=True)


# -- the targets ----------------------------------------------------------------------------------


def repository(directory: Path, sizes: Sequence[str]) -> Path:
    """Every size behind every batcher; each model on an emulated GPU of its own."""
    words: dict[str, str | None] = {"plain": None, "merging": ""}
    words |= {f"delay{us}": f"max_queue_delay_microseconds: {us}" for us in DELAYS_US}
    for size in sizes:
        for prefix, batching in words.items():
            name = model_name(prefix, size)
            config = emulated_model_config(
                name, gpu=name, a_us=0, b_us=0, dims=DIMS[size], with_stats=False,
                dynamic_batching=batching,
            )  # fmt: skip
            write_emulated_model(directory, name, config)
    return directory


@contextlib.asynccontextmanager
async def targets(sizes: Sequence[str]) -> AsyncIterator[dict[str, Target]]:
    """One Triton, one sidecar before it; every target by name."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        config = EmbeddedConfig(
            repository=repository(directory / "models", sizes),
            environment=ROOT / ".venv-triton",
            run_dir=directory / "run",
            build_dir=ROOT / ".run" / "build",
        )
        async with EmbeddedTriton(config) as triton:
            given = ("--triton-http", triton.http_address, "--triton-grpc", triton.grpc_address)
            async with serve_process(*given, cwd=ROOT) as served:
                pids = {"triton": triton.pid}
                raw = {PLAIN: "plain", MERGING: "merging"}
                raw |= dict(zip(SWEPT, (f"delay{us}" for us in DELAYS_US), strict=True))
                made = {
                    name: Target(name, prefix, triton.grpc_address, triton.http_address, pids)
                    for name, prefix in raw.items()
                }
                both = {"sidecar": served.process.pid, **pids}
                made[SIDECAR] = Target(SIDECAR, "plain", served.grpc, served.http, both)
                yield made | {"metrics": Target("metrics", "", "", served.metrics, {})}


async def batches(metrics: str) -> tuple[float, float]:
    """Rows and batches that the sidecar has sent."""
    url = f"http://{metrics}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        lines = (await reply.text()).splitlines()
    found = [0.0, 0.0]
    for line in lines:
        for index, name in enumerate(("batch_rows_sum", "batch_rows_count")):
            if line.startswith(f"tritonsched_{name}"):
                found[index] += float(line.rsplit(" ", 1)[1])
    return found[0], found[1]

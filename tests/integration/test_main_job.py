"""The main job: stock clients, real pictures, real coalescing, through a real Triton."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as sync_grpc
import tritonclient.grpc.aio as aio_grpc
import tritonclient.http as sync_http
import tritonclient.http.aio as aio_http
from numpy.typing import NDArray

from tests.integration.sidecars import grpc_url, http_url, metric
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.sidecar import Sidecar

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "tritonsched/data/pictures"
LABELS = (ROOT / "model_repository/classify_lite0/labels.txt").read_text().splitlines()
CLIENTS = 64
ROUNDS = 3
TOLERANCE = 1e-5  # of a probability, or relative: batch sizes choose other kernels on a CPU, too


def pictures() -> tuple[NDArray[Any], list[str]]:
    with np.load(PICTURES / "pictures.npz", allow_pickle=False) as data:
        return data["pictures"], [str(label) for label in data["labels"]]


def inputs(module: Any, name: str, array: NDArray[Any], datatype: str) -> list[Any]:
    made = module.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return [made]


@pytest.mark.parametrize("model", ["classify_lite0", "classify_lite1", "classify_lite2"])
@pytest.mark.parametrize("kind", ["http", "grpc", "http-aio", "grpc-aio"])
async def test_a_picture_gets_its_label_and_tritons_own_answer(
    sidecar: Sidecar, triton: EmbeddedTriton, kind: str, model: str
) -> None:
    """Sync and aio, HTTP and gRPC: the right label, equal to what Triton answers directly."""
    through = http_url(sidecar) if kind.startswith("http") else grpc_url(sidecar)
    direct = triton.http_address if kind.startswith("http") else triton.grpc_address
    images, labels = pictures()
    for image, label in zip(images, labels, strict=True):
        mine = await classify(kind, through, model, image[np.newaxis])
        theirs = await classify(kind, direct, model, image[np.newaxis])
        np.testing.assert_allclose(mine, theirs, atol=TOLERANCE)
        assert LABELS[int(mine[0].argmax())] == label


async def classify(kind: str, url: str, model: str, image: NDArray[Any]) -> NDArray[Any]:
    match kind:
        case "http":
            return await asyncio.to_thread(classify_sync, sync_http, url, model, image)
        case "grpc":
            return await asyncio.to_thread(classify_sync, sync_grpc, url, model, image)
        case "http-aio":
            return await classify_aio(aio_http, url, model, image)
        case _:
            return await classify_aio(aio_grpc, url, model, image)


def classify_sync(module: Any, url: str, model: str, image: NDArray[Any]) -> NDArray[Any]:
    client = module.InferenceServerClient(url)
    try:
        answer = client.infer(model, inputs(module, "IMAGE", image, "UINT8"))
        return np.array(answer.as_numpy("SCORES"))
    finally:
        client.close()


async def classify_aio(module: Any, url: str, model: str, image: NDArray[Any]) -> NDArray[Any]:
    async with module.InferenceServerClient(url) as client:
        answer = await client.infer(model, inputs(module, "IMAGE", image, "UINT8"))
        return np.array(answer.as_numpy("SCORES"))


async def test_curl_classifies_raw_bytes_in_time_and_is_told_why(sidecar: Sidecar) -> None:
    """The README's command: raw binary, a deadline, and the explanation on request."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-s", "-i", f"http://{http_url(sidecar)}/v2/models/classify_lite0/infer",
        "-H", "Inference-Header-Content-Length: 0", "-H", "x-request-deadline-ms: 5000",
        "-H", "x-tritonsched-explain: 1", "--data-binary", f"@{PICTURES / 'cat.uint8'}",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    head, _, body = output.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"variant=classify_lite0; slack_ms=" in head
    assert b"lone=raw-binary" in head
    scores = np.frombuffer(body[-4000:], np.float32)
    assert LABELS[int(scores.argmax())] == "Egyptian cat"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("model", ["classify_lite0", "mlp"])
async def test_many_clients_share_batches_and_get_their_own_answers(
    sidecar: Sidecar, triton: EmbeddedTriton, model: str, protocol: str
) -> None:
    """64 clients at once: equal to raw Triton, in real batches, over shared memory."""
    arrays = samples(model)
    url, direct = http_url(sidecar), triton.http_address
    if protocol == "grpc":
        url, direct = grpc_url(sidecar), triton.grpc_address
    module: Any = aio_http if protocol == "http" else aio_grpc
    batches = await metric(sidecar, "tritonsched_batch_rows_count", model=model)
    rows = await metric(sidecar, "tritonsched_batch_rows_sum", model=model)
    shared = await metric(sidecar, "tritonsched_backend_batches", transport="system")
    async with module.InferenceServerClient(direct) as client:
        expected = [await infer(client, module, model, array) for array in arrays]
    async with module.InferenceServerClient(url) as client:
        for _ in range(ROUNDS):
            made = await asyncio.gather(
                *(infer(client, module, model, arrays[n % len(arrays)]) for n in range(CLIENTS))
            )
            for n, answer in enumerate(made):
                wanted = expected[n % len(arrays)]
                np.testing.assert_allclose(answer, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    batches = await metric(sidecar, "tritonsched_batch_rows_count", model=model) - batches
    rows = await metric(sidecar, "tritonsched_batch_rows_sum", model=model) - rows
    assert rows == CLIENTS * ROUNDS
    assert rows / batches >= 3, f"{rows} rows in {batches} batches"
    assert await metric(sidecar, "tritonsched_backend_batches", transport="system") > shared
    assert any(name.startswith("tritonsched-") for name in await sidecar.backend.region_status())


def samples(model: str) -> list[NDArray[Any]]:
    if model == "mlp":
        rng = np.random.default_rng(1)
        return [rng.standard_normal((1, 2048), dtype=np.float32) for _ in range(8)]
    return [image[np.newaxis] for image in pictures()[0]]


async def infer(client: Any, module: Any, model: str, array: NDArray[Any]) -> NDArray[Any]:
    name, datatype, output = ("INPUT", "FP32", "OUTPUT")
    if model != "mlp":
        name, datatype, output = ("IMAGE", "UINT8", "SCORES")
    answer = await client.infer(model, inputs(module, name, array, datatype))
    return np.array(answer.as_numpy(output))

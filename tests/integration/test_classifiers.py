"""The classifiers on a real Triton: the right label for real pictures, alone and in batches.

Tolerance: a batch gives what its rows give alone to 1e-6 per score. The network computes in
integers, so that 0 is measured; the margin is for the softmax of other builds of onnxruntime.
"""

import json
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc.aio as client

from tests import pictures
from tritonsched.backend.embedded import EmbeddedTriton

MODELS = ("classify_lite0", "classify_lite1", "classify_lite2")
REPOSITORY = Path(__file__).parents[2] / "model_repository"
SCORE_TOLERANCE = 1e-6

Scores = npt.NDArray[np.float32]


def labels(model: str) -> list[str]:
    return (REPOSITORY / model / "labels.txt").read_text().splitlines()


async def classify(triton: EmbeddedTriton, model: str, batch: pictures.Picture) -> Scores:
    """SCORES [rows, 1000] of IMAGE [rows, 260, 260, 3], by Triton's own client."""
    image = client.InferInput("IMAGE", list(batch.shape), "UINT8").set_data_from_numpy(batch)
    async with client.InferenceServerClient(triton.grpc_address) as server:
        result = await server.infer(model, [image])
    scores: Scores = result.as_numpy("SCORES")
    return scores


async def post(triton: EmbeddedTriton, model: str, body: bytes, head_bytes: int) -> bytes:
    """The body of a 200 answer to a binary request; head_bytes: length of its JSON head."""
    url = f"http://{triton.http_address}/v2/models/{model}/infer"
    headers = {"Inference-Header-Content-Length": str(head_bytes)}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=headers) as answer,
    ):
        content = await answer.read()
        assert answer.status == 200, content
        return content


@pytest.mark.parametrize("model", MODELS)
async def test_each_picture_gets_its_label(triton: EmbeddedTriton, model: str) -> None:
    """Top-1, from the packaged picture and from the photograph as a user would prepare it."""
    names = labels(model)
    for load in (pictures.load, pictures.photograph):
        batch = np.stack([load(name) for name in pictures.NAMES])
        scores = await classify(triton, model, batch)
        found = [names[index] for index in scores.argmax(axis=1)]
        assert dict(zip(pictures.NAMES, found, strict=True)) == pictures.LABELS


@pytest.mark.parametrize("model", MODELS)
async def test_scores_are_probabilities(triton: EmbeddedTriton, model: str) -> None:
    """FP32 [rows, 1000], each row summing to 1."""
    scores = await classify(triton, model, pictures.load("coffee")[None])
    assert scores.dtype == np.float32
    assert scores.shape == (1, 1000)
    assert scores.min() >= 0
    assert scores.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("model", MODELS)
async def test_a_full_batch_answers_as_its_rows_alone(triton: EmbeddedTriton, model: str) -> None:
    """Sixteen rows, the most a batch may have, against four single ones."""
    singles = [await classify(triton, model, pictures.load(n)[None]) for n in pictures.NAMES]
    batch = np.concatenate([pictures.load(name)[None] for name in pictures.NAMES * 4])
    together = await classify(triton, model, batch)
    np.testing.assert_allclose(together, np.concatenate(singles * 4), rtol=0, atol=SCORE_TOLERANCE)


async def test_bare_bytes_are_a_whole_request(triton: EmbeddedTriton) -> None:
    """Triton's raw binary request: the file is the body, the answer is binary, SCORES last."""
    body = (pictures.FOLDER / "cat.uint8").read_bytes()
    answer = await post(triton, "classify_lite0", body, 0)
    scores = np.frombuffer(answer[-4000:], np.float32)
    assert labels("classify_lite0")[int(scores.argmax())] == pictures.LABELS["cat"]


async def test_classification_names_the_label(triton: EmbeddedTriton) -> None:
    """`classification` makes Triton answer `score:index:label` from labels.txt."""
    picture = pictures.load("camera")
    image: dict[str, Any] = {"name": "IMAGE", "datatype": "UINT8", "shape": [1, *picture.shape]}
    image["parameters"] = {"binary_data_size": picture.nbytes}
    wanted = {"name": "SCORES", "parameters": {"classification": 3}}
    head = json.dumps({"inputs": [image], "outputs": [wanted]}).encode()
    answer = json.loads(await post(triton, "classify_lite2", head + picture.tobytes(), len(head)))
    best, *others = answer["outputs"][0]["data"]
    assert best.split(":")[1:] == ["872", pictures.LABELS["camera"]]
    assert len(others) == 2


async def test_the_most_accurate_variant_says_so(triton: EmbeddedTriton) -> None:
    """The scheduler ranks the variants by the accuracy that their configurations declare."""
    async with client.InferenceServerClient(triton.grpc_address) as server:
        configs = [(await server.get_model_config(model)).config for model in MODELS]
    accuracies = [float(c.parameters["tritonsched_accuracy"].string_value) for c in configs]
    assert accuracies == sorted(accuracies)
    assert len({c.parameters["tritonsched_device"].string_value for c in configs}) == 1
    assert not any(c.HasField("dynamic_batching") for c in configs)

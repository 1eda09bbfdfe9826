"""A model with variants on a real Triton: who serves it when, and what its clients see of it."""

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_client
import tritonclient.http.aio as http_client
from tritonclient.utils import InferenceServerException

from tests import pictures
from tests.integration.conftest import TritonFactory
from tests.integration.sidecars import grpc_url, http_url, running_sidecar
from tests.integration.test_classifiers import SCORE_TOLERANCE, classify
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model
from tritonsched.sidecar import Sidecar

CLASSIFY = """
models:
  classify: {variants: [classify_lite0, classify_lite1, classify_lite2]}
"""
TWO_SPEEDS = """
classes:
  calm: {deadline_ms: 5000}
  burst: {deadline_ms: 400}
default_class: calm
models:
  both: {variants: [quick, good]}
  quick: {accuracy: 0.6}
  good: {accuracy: 0.8}
"""
ROWS = (3, 32, 32)
BURST = 60
PARAMETER = "tritonsched_variant"


# -- the classifiers --------------------------------------------------------------------------


async def test_a_picture_is_classified_by_the_most_accurate_and_the_answer_says_so(
    triton: EmbeddedTriton,
) -> None:
    """Over both protocols, merged and alone, equal to that variant's own answer."""
    batch = np.stack([pictures.load(pictures.NAMES[0])])
    alone = await classify(triton, "classify_lite2", batch)
    async with running_sidecar(triton, policy=CLASSIFY) as sidecar:
        for version in ("", "1"):
            async with grpc_client.InferenceServerClient(grpc_url(sidecar)) as server:
                image = grpc_client.InferInput("IMAGE", list(batch.shape), "UINT8")
                image.set_data_from_numpy(batch)
                result = await server.infer("classify", [image], model_version=version)
            response = result.get_response()
            assert (response.model_name, response.model_version) == ("classify", "1")
            assert response.parameters[PARAMETER].string_param == "classify_lite2"
            np.testing.assert_allclose(result.as_numpy("SCORES"), alone, atol=SCORE_TOLERANCE)
        async with http_client.InferenceServerClient(http_url(sidecar)) as web:
            input_ = http_client.InferInput("IMAGE", list(batch.shape), "UINT8")
            input_.set_data_from_numpy(batch)
            found = []
            for classes in (0, 3):  # classification goes alone
                output = http_client.InferRequestedOutput("SCORES", class_count=classes)
                answer = await web.infer("classify", [input_], outputs=[output])
                said = answer.get_response()
                assert (said["model_name"], said["model_version"]) == ("classify", "1")
                found.append(answer.as_numpy("SCORES")[0])
            np.testing.assert_allclose(found[0], alone[0], atol=SCORE_TOLERANCE)
            assert "Egyptian cat" in str(found[1][0])


async def test_what_clients_ask_about_a_model_is_answered_for_it(triton: EmbeddedTriton) -> None:
    async with running_sidecar(triton, policy=CLASSIFY) as sidecar:
        async with http_client.InferenceServerClient(http_url(sidecar)) as web:
            assert await web.is_model_ready("classify")
            assert not await web.is_model_ready("classify", "2")
            metadata = await web.get_model_metadata("classify")
            assert (metadata["name"], metadata["versions"]) == ("classify", ["1"])
            assert (await web.get_model_config("classify"))["name"] == "classify"
            index = await web.get_model_repository_index()
            assert {"name": "classify", "version": "1", "state": "READY"} in index
            stats = await web.get_inference_statistics("classify")
            assert {entry["name"] for entry in stats["model_stats"]} == {
                "classify_lite0", "classify_lite1", "classify_lite2"
            }  # fmt: skip
            with pytest.raises(InferenceServerException, match="load and unload classify_lite0"):
                await web.unload_model("classify")
        async with grpc_client.InferenceServerClient(grpc_url(sidecar)) as server:
            assert await server.is_model_ready("classify")
            assert (await server.get_model_metadata("classify")).name == "classify"
            assert (await server.get_model_config("classify")).config.name == "classify"
            names = [model.name for model in (await server.get_model_repository_index()).models]
            assert names.count("classify") == 1
            with pytest.raises(InferenceServerException, match="load and unload classify_lite0"):
                await server.load_model("classify")


async def test_the_header_names_it_for_a_call_that_goes_alone(triton: EmbeddedTriton) -> None:
    """JSON tensors go alone; a stream has to name a variant."""
    async with running_sidecar(triton, policy=CLASSIFY) as sidecar:
        body = {
            "inputs": [
                {
                    "name": "IMAGE",
                    "datatype": "UINT8",
                    "shape": [1, 260, 260, 3],
                    "data": pictures.load(pictures.NAMES[0]).reshape(-1).tolist(),
                }
            ]
        }
        url = f"http://{http_url(sidecar)}/v2/models/classify"
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{url}/infer", json=body) as reply:
                assert reply.headers["x-tritonsched-variant"] == "classify_lite2"
                assert (await reply.json())["model_name"] == "classify"
            async with session.post(f"{url}/generate", json={"IMAGE": 1}) as reply:
                assert reply.headers["x-tritonsched-reason"] == "variants-only"


# -- as time allows ---------------------------------------------------------------------------


async def served(sidecar: Sidecar, *, slo: str, count: int = 1) -> Counter[str]:
    """Who answered `count` requests at once; "" for those that were refused."""
    server = grpc_client.InferenceServerClient(grpc_url(sidecar))

    async def ask(model: str = "both") -> str:
        tensor = grpc_client.InferInput("INPUT", [1, *ROWS], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, *ROWS), np.float32))
        try:
            result = await server.infer(model, [tensor], headers={"x-tritonsched-class": slo})
        except InferenceServerException:
            return ""
        return str(result.get_response().parameters[PARAMETER].string_param)

    async with server:
        return Counter(await asyncio.gather(*(ask() for _ in range(count))))


async def test_under_load_a_cheaper_variant_serves_and_in_the_calm_the_better_one_again(
    triton_factory: TritonFactory, tmp_path: Path
) -> None:
    """`good` takes 40 ms and 10 a row, `quick` 4 and 1: sixty at once in 400 ms are for `quick`."""
    for name, a_us, b_us in (("good", 40_000, 10_000), ("quick", 4_000, 1_000)):
        config = emulated_model_config(name, gpu="gpu7", a_us=a_us, b_us=b_us)
        write_emulated_model(tmp_path, name, config)
    triton = await triton_factory(tmp_path)
    async with running_sidecar(triton, policy=TWO_SPEEDS) as sidecar:
        for model in ("good", "quick"):
            await learn(sidecar, model)
        assert await served(sidecar, slo="calm") == {"good": 1}
        burst = await served(sidecar, slo="burst", count=BURST)
        assert burst["quick"] > BURST // 2, burst
        for _ in range(2):
            assert await served(sidecar, slo="calm") == {"good": 1}


async def learn(sidecar: Sidecar, model: str) -> None:
    """Bursts of growing size, so that times are known by rows."""
    async with grpc_client.InferenceServerClient(grpc_url(sidecar)) as server:
        tensor = grpc_client.InferInput("INPUT", [1, *ROWS], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, *ROWS), np.float32))
        for count in (1, 1, 1, 2, 4, 8, 16, 32, 32, 32):
            asked = (server.infer(model, [tensor]) for _ in range(count))
            await asyncio.gather(*asked)

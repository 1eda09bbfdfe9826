"""`serve --record` in front of a real Triton: what is recorded can be replayed."""

import asyncio
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as client
from tritonclient.utils import InferenceServerException

from tests.integration.sidecars import grpc_url, running_sidecar
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.config.recorded import read_recording
from tritonsched.core.request import Outcome
from tritonsched.sim.replay import OLD, Traffic, recorded, replayed

POLICY = "classes: {tight: {deadline_ms: 60}}\nmodels: {emulated_b: {default_class: tight}}\n"
ROUNDS, BURST = 12, 24
SHAPE = (1, 3, 32, 32)


async def test_live_traffic_is_recorded_and_replayed_under_another_rule(
    triton: EmbeddedTriton, tmp_path: Path
) -> None:
    """Every request that was sent is in the file with its end, and a replay runs all of them."""
    path = tmp_path / "r.jsonl"
    async with running_sidecar(triton, policy=POLICY, record=path) as sidecar:
        server = client.InferenceServerClient(grpc_url(sidecar))
        tensor = client.InferInput("INPUT", list(SHAPE), "FP32")
        tensor.set_data_from_numpy(np.zeros(SHAPE, np.float32))

        async def ask() -> bool:
            try:
                await server.infer("emulated_b", [tensor])
            except InferenceServerException:
                return False
            return True

        async with server:
            answered = sum(
                [sum(await asyncio.gather(*(ask() for _ in range(BURST)))) for _ in range(ROUNDS)]
            )
    traffic = Traffic(read_recording(path))
    real = recorded(traffic)
    assert len(traffic.requests) == ROUNDS * BURST
    assert set(traffic.recording.left) == {request.id for request in traffic.requests}
    served = real.account.total(Outcome.SERVED) + real.account.total(Outcome.LATE)
    assert served == answered > 0
    assert {batch.model for batch in traffic.recording.batches} == {"emulated_b"}
    for rule in ("lite", "fcfs"):
        policy = traffic.recording.policy
        scheduler = policy.scheduler.model_copy(update={"policy": rule})
        again = replayed(traffic, OLD, policy.model_copy(update={"scheduler": scheduler}), seed=1)
        assert sum(again.account.submitted.values()) == ROUNDS * BURST
        assert len(again.account.ends) == ROUNDS * BURST

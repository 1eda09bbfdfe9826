"""Reserved streams through the real sidecar: stock clients, the helpers, both protocols."""

import asyncio
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as sync_grpc
import tritonclient.http as sync_http

from tests.integration.sidecars import grpc_url, http_url, running_sidecar
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.client import NotReserved, ReservedStream, reserve, reserve_grpc
from tritonsched.core.batch import Batch
from tritonsched.core.latency import PROVEN_SAMPLES
from tritonsched.core.ledger import Ledger
from tritonsched.proxy.named import RESERVATION
from tritonsched.sidecar import Sidecar

MODEL = "echo"
FRAMES = 60
STREAM: dict[str, Any] = {"period_ms": 20.0, "relative_deadline_ms": 200.0, "jitter_ms": 9.0}


def inputs(module: Any, value: int) -> list[Any]:
    made = module.InferInput("INPUT", [1, 16], "FP32")
    made.set_data_from_numpy(np.full((1, 16), value, np.float32))
    return [made]


def prove(url: str, model: str = MODEL) -> None:
    """Its time has to be known before anything can be promised."""
    with sync_http.InferenceServerClient(url) as client:
        for number in range(PROVEN_SAMPLES + 4):
            client.infer(model, inputs(sync_http, number))


def filmed(module: Any, url: str, stream: ReservedStream) -> list[int]:
    """The frames' answers, each sent when it was expected."""
    with module.InferenceServerClient(url) as client:
        return [
            int(
                client.infer(MODEL, inputs(module, frame), headers=stream.headers)
                .as_numpy("OUTPUT")
                .ravel()[0]
            )
            for frame in stream
        ]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_stream_is_reserved_filmed_and_released(sidecar: Sidecar, protocol: str) -> None:
    way: Any
    module, way = (sync_http, reserve) if protocol == "http" else (sync_grpc, reserve_grpc)
    url = http_url(sidecar) if protocol == "http" else grpc_url(sidecar)
    await asyncio.to_thread(prove, http_url(sidecar))
    stream = await asyncio.to_thread(way, url, MODEL, inputs(module, 0), frames=FRAMES, **STREAM)
    (entry,) = sidecar.reservations.listed(MODEL)
    assert (entry.name, entry.reservation.frames) == (stream.id, stream.frames)
    answers = await asyncio.to_thread(filmed, module, url, stream)
    assert answers == sorted(answers)
    assert set(answers) <= set(range(FRAMES))
    assert answers
    await asyncio.to_thread(stream.release)
    assert sidecar.reservations.listed() == ()
    assert sidecar.scheduler.reservations() == ()


async def test_a_stream_that_nobody_could_keep_is_refused_with_its_reason(
    sidecar: Sidecar,
) -> None:
    await asyncio.to_thread(prove, http_url(sidecar))
    impossible = STREAM | {"relative_deadline_ms": 0.02, "jitter_ms": 0.0, "frames": 100}
    way: Any
    for way, url, module in (
        (reserve, http_url(sidecar), sync_http),
        (reserve_grpc, grpc_url(sidecar), sync_grpc),
    ):
        with pytest.raises(NotReserved) as refused:
            await asyncio.to_thread(way, url, MODEL, inputs(module, 0), **impossible)
        assert refused.value.reason == "unschedulable"


async def test_what_is_no_stream_is_told(sidecar: Sidecar) -> None:
    def ask() -> None:
        reserve(http_url(sidecar), MODEL, inputs(sync_http, 0), period_ms=5, frames=5)

    with pytest.raises(NotReserved, match="'relative_deadline_ms' is missing"):
        await asyncio.to_thread(ask)


class Seen(Ledger):
    """Which model ran the frames of which stream."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[tuple[int, str]] = set()

    def on_dispatch(self, batch: Batch, now: int) -> None:
        self.ran |= {(request.reservation, batch.model) for request in batch.requests}


async def test_a_stream_of_a_model_with_variants_is_kept_and_may_be_named_by_a_parameter(
    triton: EmbeddedTriton,
) -> None:
    def film(stream: ReservedStream, url: str) -> None:
        with sync_http.InferenceServerClient(url) as client:
            for frame in stream:
                named = {RESERVATION: stream.id}
                client.infer("look", inputs(sync_http, frame), parameters=named)

    policy = f"models:\n  look: {{variants: [{MODEL}]}}\n"
    async with running_sidecar(triton, policy=policy) as sidecar:
        url, seen = http_url(sidecar), Seen()
        await asyncio.to_thread(prove, url, "look")
        wanted = STREAM | {"frames": 12, "period_ms": 60.0, "relative_deadline_ms": 1000.0}
        stream = await asyncio.to_thread(reserve, url, "look", inputs(sync_http, 0), **wanted)
        ((granted, _),) = sidecar.scheduler.reservations()
        assert granted.model == "look"
        sidecar.scheduler._audience.join(seen)
        await asyncio.to_thread(film, stream, url)
    assert seen.ran == {(int(stream.id), MODEL)}

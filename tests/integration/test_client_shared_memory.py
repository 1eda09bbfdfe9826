"""Stock clients with system shared memory: through the sidecar as with Triton itself."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from tests.integration.sidecars import grpc_url, http_url, metric
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.sidecar import Sidecar

SIZE = 4096
CLIENTS = 6
WIRES = [(over_http, "http"), (over_grpc, "grpc")]


@contextlib.contextmanager
def shared(name: str) -> Iterator[Any]:
    """A region of this process."""
    region = shm.create_shared_memory_region(name, f"/{name}", SIZE)
    try:
        yield region
    finally:
        shm.destroy_shared_memory_region(region)


@contextlib.contextmanager
def client(module: Any, url: str) -> Iterator[Any]:
    made = module.InferenceServerClient(url)
    try:
        yield made
    finally:
        made.close()


def echoed(module: Any, url: str, name: str, value: float) -> list[float]:
    """As Triton's simple_*_shm_client: input and output in one region, the output behind."""
    sent = np.full((1, 4), value, np.float32)
    with shared(name) as region, client(module, url) as triton:
        shm.set_shared_memory_region(region, [sent])
        triton.register_system_shared_memory(name, f"/{name}", SIZE)
        given = module.InferInput("INPUT", [1, 4], "FP32")
        given.set_shared_memory(name, sent.nbytes)
        wanted = module.InferRequestedOutput("OUTPUT")
        wanted.set_shared_memory(name, sent.nbytes, offset=64)
        answer = triton.infer("echo", [given], outputs=[wanted]).get_output("OUTPUT")
        assert answer is not None
        triton.unregister_system_shared_memory(name)
        return [float(x) for x in shm.get_contents_as_numpy(region, np.float32, [1, 4], 64)[0]]


def url_of(sidecar: Sidecar, wire: str) -> str:
    return http_url(sidecar) if wire == "http" else grpc_url(sidecar)


@pytest.mark.parametrize(("module", "wire"), WIRES)
async def test_clients_with_regions_are_merged_and_read_what_they_sent(
    sidecar: Sidecar, module: Any, wire: str
) -> None:
    before = await metric(sidecar, "tritonsched_lone_requests_total", model="echo")
    asked = [
        asyncio.to_thread(echoed, module, url_of(sidecar, wire), f"c{wire}{i}", float(i))
        for i in range(CLIENTS)
    ]
    assert await asyncio.gather(*asked) == [[float(i)] * 4 for i in range(CLIENTS)]
    assert await metric(sidecar, "tritonsched_lone_requests_total", model="echo") == before
    assert len(sidecar.regions) == 0


@pytest.mark.parametrize(("module", "wire"), WIRES)
async def test_faults_have_tritons_words(
    sidecar: Sidecar, triton: EmbeddedTriton, module: Any, wire: str
) -> None:
    def told(url: str, offset: int, region: str, size: int) -> str:
        with shared("faulty"), client(module, url) as at:
            at.register_system_shared_memory("faulty", "/faulty", SIZE)
            given = module.InferInput("INPUT", [1, 4], "FP32")
            given.set_shared_memory(region, 16, offset=offset)
            wanted = module.InferRequestedOutput("OUTPUT")
            wanted.set_shared_memory("faulty", size)
            with pytest.raises(InferenceServerException) as caught:
                at.infer("echo", [given], outputs=[wanted])
            at.unregister_system_shared_memory("faulty")
            return str(caught.value)

    raw = triton.http_address if wire == "http" else triton.grpc_address
    for fault in ((SIZE, "faulty", 16), (0, "nobody's", 16), (0, "faulty", 8)):
        straight = await asyncio.to_thread(told, raw, *fault)
        assert await asyncio.to_thread(told, url_of(sidecar, wire), *fault) == straight


@pytest.mark.parametrize(("module", "wire"), WIRES)
async def test_the_pool_is_neither_seen_nor_closed_nor_reached(
    sidecar: Sidecar, module: Any, wire: str
) -> None:
    await sidecar.backend.connect()  # another test may have closed all regions of this Triton
    (pool,) = await sidecar.backend.region_status()

    def seen() -> None:
        with shared("mine"), client(module, url_of(sidecar, wire)) as at:
            at.register_system_shared_memory("mine", "/mine", SIZE)
            status = at.get_system_shared_memory_status()
            names = [r["name"] for r in status] if wire == "http" else list(status.regions)
            assert names == ["mine"]
            with pytest.raises(InferenceServerException, match="Unable to find"):
                at.get_system_shared_memory_status(pool)
            for name, key in ((pool, "/mine"), ("x", f"/{pool}"), ("x", f"//{pool}")):
                with pytest.raises(InferenceServerException, match="not a client's"):
                    at.register_system_shared_memory(name, key, SIZE)
            with pytest.raises(InferenceServerException, match="not a client's"):
                at.unregister_system_shared_memory(pool)
            at.unregister_system_shared_memory()
            assert not (at.get_system_shared_memory_status() if wire == "http" else None)

    await asyncio.to_thread(seen)
    assert list(await sidecar.backend.region_status()) == [pool]
    assert len(sidecar.regions) == 0


async def test_a_region_that_shrank_does_not_end_triton(
    sidecar: Sidecar, triton: EmbeddedTriton
) -> None:
    """Straight at Triton 2.51 it would: reading past the end of a mapping is SIGBUS."""

    def shrunk() -> None:
        with shared("shrinks"), client(over_http, http_url(sidecar)) as at:
            at.register_system_shared_memory("shrinks", "/shrinks", SIZE)
            os.truncate("/dev/shm/shrinks", 0)
            given = over_http.InferInput("INPUT", [1, 4], "FP32")
            given.set_shared_memory("shrinks", 16)
            with pytest.raises(InferenceServerException, match="smaller than it was"):
                at.infer("echo", [given])
            at.unregister_system_shared_memory("shrinks")

    await asyncio.to_thread(shrunk)
    assert triton.is_running

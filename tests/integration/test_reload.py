"""A policy file changes on disk under load: the real watch, a real Triton, no request lost."""

import asyncio
from functools import partial
from pathlib import Path

import aiohttp

from tests.integration.sidecars import HOST, http_url, metric, options
from tests.integration.test_bad_input import body, post
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.config.load import load_policy
from tritonsched.proxy.reload import APPLIED, REFUSED, Reload
from tritonsched.sidecar import Sidecar

GOOD = "classes: {gold: {deadline_ms: 20000}}\ndefault_class: gold\n"
VERSIONS = (
    "classes: {gold: {deadline_ms: 21000}}\ndefault_class: gold\nscheduler: {policy: edf}\n",
    "classes: {gold: {deadline_ms: -1}}\n",
    "classes: [[[[\n",
    "classes: {gold: {deadline_ms: 22000}}\ndefault_class: gold\n",
)


def written(path: Path, text: str) -> None:
    """Replaced as editors and deployments do it."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


async def test_a_file_replaced_again_and_again_loses_no_request_and_keeps_what_was_good(
    triton: EmbeddedTriton, tmp_path: Path
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    read = partial(load_policy, path)
    made = options(triton, policy=GOOD, policy_path=path, read_policy=read)
    sidecar = Sidecar(made, say=lambda _: None)
    ended: asyncio.Queue[Reload] = asyncio.Queue()
    done = asyncio.Event()
    statuses: list[int] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while not done.is_set():
            headers, data = body()
            status, _, _ = await post(session, http_url(sidecar), "echo", headers, data)
            statuses.append(status)

    try:
        await sidecar.start()
        await sidecar.health.wait_up()
        sidecar.reloader._told = ended.put_nowait
        async with aiohttp.ClientSession() as session:
            clients = [asyncio.create_task(client(session)) for _ in range(4)]
            outcomes = []
            async with asyncio.timeout(60):
                for text in VERSIONS:
                    written(path, text)
                    outcomes.append((await ended.get()).outcome)
            url = f"http://{HOST}:{sidecar.admin_server.port}/admin/reload"
            async with session.post(url) as reply:
                assert (reply.status, (await reply.json())["changes"]) == (200, [])
            done.set()
            await asyncio.gather(*clients)
        assert outcomes == [APPLIED, REFUSED, REFUSED, APPLIED]
        assert sidecar.reloader.policy == load_policy(path)
        assert statuses
        assert set(statuses) == {200}
        assert await metric(sidecar, "tritonsched_requests_total") == len(statuses)
    finally:
        await sidecar.stop()

"""Every query of the dashboard and every alert's expression, on a real Prometheus that scraped a
real sidecar under load: each has an answer, or is empty for a reason that stands here.
"""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import yaml
from grpc.aio import AioRpcError
from tritonclient.grpc import service_pb2

from tests.deploy.dockerfile import instructions
from tests.deploy.monitoring import PROMETHEUS, ROOT, alerts, filled, measured, program, queries
from tests.integration.raw_triton import RawTriton, infer_request, raw_client
from tests.integration.sidecars import HOST, grpc_url, running_sidecar
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.sidecar import Sidecar

POLICY = "classes: {gold: {deadline_ms: 10000}}\ndefault_class: gold\n"
ROUNDS_MAX = 300  # of requests and a look; a few dozen are needed
LOG_LINES_MAX = 1000
# What stays empty here, by a word of the expression, and why.
EMPTY = {
    "nv_gpu_utilization": "there is no GPU",
    'outcome="late"}[5m]': "nothing was late: an alert's share of nothing",
    'outcome="failed"': "nothing failed",
    "tritonsched_merge_failures_total": "no merged batch failed",
    'transport_info{transport="inline"}': "shared memory is in use",
}


# What has an answer only if feedback found something to change in these seconds: merely asked.
EITHER = "tritonsched_tuning_changes_total"


@asynccontextmanager
async def prometheus(directory: Path, target: str) -> AsyncIterator[str]:
    """Prometheus with our configuration, but the target and the pace; yields its URL."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    config["global"]["scrape_timeout"] = "200ms"
    config["rule_files"] = [str(PROMETHEUS / "rules.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        program("prometheus"),
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={HOST}:0",
        cwd=directory,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        address = await _address(process.stderr)
        drain = asyncio.create_task(_read_on(process.stderr))  # else a full pipe would stop it
        yield f"http://{address}"
        drain.cancel()
    finally:
        process.kill()
        await process.wait()


async def _address(log: asyncio.StreamReader) -> str:
    """Where it listens; read until it says that it is ready."""
    address = ""
    lines: list[str] = []
    for _ in range(LOG_LINES_MAX):
        line = (await log.readline()).decode()
        assert line, "it ended: " + "".join(lines)
        lines.append(line)
        if found := re.search(r'msg="Listening on" address=(\S+)', line):
            address = found.group(1)
        if "Server is ready to receive web requests" in line:
            return address
    raise AssertionError("".join(lines))


async def _read_on(log: asyncio.StreamReader) -> None:
    while await log.readline():
        pass


async def asked(session: aiohttp.ClientSession, url: str, expression: str) -> list[Any]:
    """Prometheus' answer to an instant query. Fails with its words if it refuses the query."""
    async with session.get(f"{url}/api/v1/query", params={"query": expression}) as reply:
        answer = await reply.json()
    assert answer["status"] == "success", f"{expression}: {answer}"
    found = answer["data"]["result"]
    assert isinstance(found, list)
    return [sample for sample in found if sample["value"][1] != "NaN"]


async def load(client: RawTriton) -> None:
    """Requests that are merged, one that is refused, one that goes alone."""
    row = np.ones((1, 3, 32, 32), np.float32)
    await asyncio.gather(*(client.infer("emulated_b", INPUT=row) for _ in range(8)))
    with pytest.raises(AioRpcError, match="DEADLINE_EXCEEDED"):
        await client.stub.ModelInfer(
            infer_request("emulated_b", {"INPUT": row}),
            metadata=(("x-request-deadline-ms", "0.01"),),
        )
    alone = service_pb2.ModelInferRequest(model_name="emulated_b")
    typed = alone.inputs.add(name="INPUT", datatype="FP32", shape=row.shape)
    typed.contents.fp32_contents.extend(row.ravel())  # not raw bytes: goes as it came
    await client.stub.ModelInfer(alone)


def expected() -> list[str]:
    """All expressions as Prometheus gets them."""
    return [filled(expression) for _, expression in queries()] + [
        measured(alert) for alert in alerts().values()
    ]


async def test_every_query_and_every_alert_has_an_answer_or_a_reason_to_have_none(
    triton: EmbeddedTriton, tmp_path: Path
) -> None:
    full = [e for e in expected() if not any(word in e for word in (*EMPTY, EITHER))]
    empty = [e for e in expected() if e not in full]
    async with (
        running_sidecar(triton, policy=POLICY) as sidecar,
        prometheus(tmp_path, f"{HOST}:{sidecar.admin_server.port}") as url,
        raw_client(grpc_url(sidecar)) as client,
        aiohttp.ClientSession() as session,
    ):
        missing = full
        for _ in range(ROUNDS_MAX):
            await load(client)
            missing = [e for e in missing if not await asked(session, url, e)]
            if not missing:
                break
        assert not missing
        answered = [e for e in empty if await asked(session, url, e) and EITHER not in e]
        assert not answered, "no longer empty; take it out of EMPTY"
        await all_rules_are_evaluated(session, url, client)


async def all_rules_are_evaluated(
    session: aiohttp.ClientSession, url: str, client: RawTriton
) -> None:
    """Prometheus runs each alert without a fault; none that needs no waiting time fires."""
    rules: list[dict[str, Any]] = []
    for _ in range(ROUNDS_MAX):
        async with session.get(f"{url}/api/v1/rules") as reply:
            groups = (await reply.json())["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        if rules and all(rule["health"] != "unknown" for rule in rules):
            break
        await load(client)
    assert {rule["name"] for rule in rules} == set(alerts())
    assert {rule["health"] for rule in rules} == {"ok"}
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]


async def test_the_images_health_check_tells_a_ready_sidecar_from_another(
    sidecar: Sidecar,
) -> None:
    """The very command of the Dockerfile, on this Python, against a sidecar's own port."""
    (check,) = [i.text for i in instructions(ROOT / "deploy/Dockerfile") if i.word == "HEALTHCHECK"]
    _, code = json.loads(check.partition("CMD ")[2])[1:]
    for port, expected_code in ((sidecar.admin_server.port, 0), (1, 1)):
        command = [sys.executable, "-c", code.replace(":8002/", f":{port}/")]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
        assert done.returncode == expected_code, done.stderr

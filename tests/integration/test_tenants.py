"""Tenants in front of a real Triton: named on every way in, and what is theirs under overload."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest

from tests.integration.raw_triton import infer_request
from tests.integration.sidecars import grpc_url, http_url, metric, running_sidecar
from tests.integration.stage import stub_of
from tests.integration.test_bad_input import HEAD, body, post
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.proxy.named import TENANT
from tritonsched.sidecar import Sidecar

POLICY = """
tenants:
  shop: {share: 0.5}
  lab: {}
  clinic: {merge: own}
default_tenant: lab
limits: {queue_requests_max: 8}
"""
ROW = np.zeros((1, 4), np.float32)
BURST, THEIRS = 40, 4  # requests of one, and places that the other is guaranteed


@pytest.fixture(scope="module")
async def sidecar(triton: EmbeddedTriton) -> AsyncIterator[Sidecar]:
    async with running_sidecar(triton, policy=POLICY) as started:
        yield started


async def served(sidecar: Sidecar, tenant: str) -> float:
    name = "tritonsched_tenant_requests_total"
    return await metric(sidecar, name, tenant=tenant, outcome="served")


def parameter(binary: bytes = b"") -> tuple[dict[str, str], bytes]:
    """A request to echo that names its tenant in the body; merged if its data is binary."""
    tensor: dict[str, Any] = {"name": "INPUT", "shape": [1, 4], "datatype": "FP32"}
    tensor |= {"parameters": {"binary_data_size": 16}} if binary else {"data": [0.0] * 4}
    parameters: dict[str, Any] = {TENANT: "shop"}
    if binary:
        parameters["binary_data_output"] = True
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return ({HEAD: str(len(head))} if binary else {}), head + binary


async def test_a_tenant_is_named_by_header_metadata_or_parameter_and_triton_does_not_mind(
    sidecar: Sidecar,
) -> None:
    before = await served(sidecar, "shop")
    headers, data = body()
    ways = [
        (headers | {TENANT: "shop"}, data),
        parameter(ROW.tobytes()),
        parameter(),  # not merged: Triton gets the parameter, too
    ]
    async with aiohttp.ClientSession() as session:
        for given, sent in ways:
            status, _, answer = await post(session, http_url(sidecar), "echo", given, sent)
            assert status == 200, answer
    async with stub_of(grpc_url(sidecar)) as stub:
        await stub.ModelInfer(infer_request("echo", {"INPUT": ROW}), metadata=((TENANT, "shop"),))
        named = infer_request("echo", {"INPUT": ROW})
        named.parameters[TENANT].string_param = "shop"
        await stub.ModelInfer(named)
    assert await served(sidecar, "shop") - before == 5


async def test_a_name_that_nobody_has_is_the_default_tenants(sidecar: Sidecar) -> None:
    before = await served(sidecar, "lab")
    headers, data = body()
    async with aiohttp.ClientSession() as session:
        for named in ({}, {TENANT: "nobody"}, {TENANT: ""}):
            status, _, _ = await post(session, http_url(sidecar), "echo", headers | named, data)
            assert status == 200
    assert await served(sidecar, "lab") - before == 3


async def test_a_burst_of_one_tenant_does_not_refuse_the_other_its_places(
    sidecar: Sidecar,
) -> None:
    """The queue holds eight: what the burst has of it beyond its share gives way."""
    first_refused = asyncio.Event()

    async def ask(session: aiohttp.ClientSession, tenant: str) -> tuple[int, str]:
        tensor: dict[str, Any] = {"name": "INPUT", "shape": [1, 3, 32, 32], "datatype": "FP32"}
        tensor |= {"parameters": {"binary_data_size": 12288}}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        headers = {HEAD: str(len(head)), TENANT: tenant}
        data = head.encode() + bytes(12288)
        status, found, _ = await post(session, http_url(sidecar), "emulated_a", headers, data)
        if status == 429:
            first_refused.set()
        return status, found.get("x-tritonsched-reason", "")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        burst = [asyncio.ensure_future(ask(session, "lab")) for _ in range(BURST)]
        async with asyncio.timeout(30):
            await first_refused.wait()
            theirs = await asyncio.gather(*(ask(session, "shop") for _ in range(THEIRS)))
            ends = await asyncio.gather(*burst)
    assert {status for status, _ in theirs} == {200}
    assert {reason for status, reason in ends if status != 200} == {"tenant-over-share"}

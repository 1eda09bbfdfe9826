"""The door with the shield: what is refused never reaches Triton, and what is allowed does."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.proxy.calls import ECHO, call, tensor
from tests.unit.proxy.scene import ends, virtual
from tests.unit.proxy.test_service import CANNED, Door
from tests.virtual_loop import VirtualLoop
from tritonsched.backend.catalogue import TensorInfo
from tritonsched.backend.scripted import hang
from tritonsched.config.load import parse_policy
from tritonsched.core.request import SloClass
from tritonsched.errors import GuardedUse, Shielded
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.proxy.intake import Intake
from tritonsched.proxy.reload import LivePolicy
from tritonsched.tensors import Answer, GrpcReply, HttpReply, InferCall, ShmRef, Wire

POOL = "tritonsched-12-0123abcd"
TEXTS = replace(ECHO, outputs={"OUTPUT": TensorInfo("OUTPUT", "BYTES", (-1,))})
CLASSES = b'{"outputs":[{"name":"OUTPUT","parameters":{"classification":1}}]}'
WRAPS = b'{"shared_memory_region":"a","shared_memory_offset":4611686018427387904}'


def http(body: bytes, reason: str = "json-tensors") -> InferCall:
    return call(wire=Wire.HTTP, raw=body, lone_reason=reason, inputs=())


def door_of(loop: VirtualLoop, **models: object) -> Door:
    door = Door(loop)
    door.proxy.limit_tensor_bytes(1 << 20)
    door.backend.answers |= models  # type: ignore[arg-type]  # infos or None
    return door


async def ended(door: Door, made: InferCall) -> Answer | Exception:
    (outcome,) = await asyncio.gather(door.ask(made), return_exceptions=True)
    assert not isinstance(outcome, asyncio.CancelledError)
    return outcome  # type: ignore[return-value]  # an Exception


@pytest.mark.parametrize("known", [True, False])
def test_a_harmful_call_is_refused_until_its_rule_is_allowed(known: bool) -> None:
    @virtual
    async def story(loop: VirtualLoop) -> None:
        door = door_of(loop, echo=TEXTS)
        if known:
            await door.ask(http(b"{}"))
        refused = await ended(door, http(CLASSES))
        assert isinstance(refused, Shielded)
        assert "class-of-text" in str(refused)
        before = len(door.backend.lone)
        door.proxy.shield.adopt(enabled=True, allow=["class-of-text"], guard_regions=True)
        assert isinstance(await ended(door, http(CLASSES)), HttpReply)
        assert [made.raw for made in door.backend.lone[before:]] == [CLASSES]

    story()


@virtual
async def test_of_a_model_that_triton_does_not_serve_the_rest_is_looked_at(
    loop: VirtualLoop,
) -> None:
    door = door_of(loop, echo=None)
    assert isinstance(await ended(door, http(WRAPS)), Shielded)
    assert isinstance(await ended(door, http(CLASSES)), HttpReply)


@virtual
async def test_what_a_generating_model_is_told_is_its_own(loop: VirtualLoop) -> None:
    """But nested too deep it ends Triton all the same."""
    door = door_of(loop, echo=TEXTS)
    assert isinstance(await ended(door, http(CLASSES, "generate")), HttpReply)
    assert isinstance(await ended(door, http(b"[" * 20_000, "generate")), Shielded)


@virtual
async def test_a_strict_stream_is_refused_and_a_strict_unary_call_is_not(
    loop: VirtualLoop,
) -> None:
    door = door_of(loop)
    strict = call(headers=(("triton_grpc_error", "true"),), lone_reason="stream")
    told: list[object] = []

    async def send(_: int) -> GrpcReply:
        return CANNED

    await door.ask(call())
    door.proxy.submit(strict, told.append, send)
    await door.settle()
    assert isinstance(told[0], Shielded)
    assert "strict-stream" in str(told[0])
    assert await ended(door, replace(strict, lone_reason="x")) == CANNED


@pytest.mark.parametrize("plain", [True, False])
def test_a_pool_is_unknown_to_whoever_names_it(plain: bool) -> None:
    @virtual
    async def story(loop: VirtualLoop) -> None:
        door = door_of(loop)
        named = call(replace(tensor(), data=b"", ref=ShmRef(f"{POOL}\0x", 0, 2)))
        odd = http(b'{"shared_memory_region":"%b"}' % POOL.encode())
        refused = await ended(door, named if plain else odd)
        assert isinstance(refused, GuardedUse)
        assert str(refused) == f"Unable to find shared memory region: '{POOL}'"
        door.proxy.shield.adopt(enabled=True, allow=[], guard_regions=False)
        assert not isinstance(await ended(door, named if plain else odd), Exception)

    story()


def test_a_region_that_shrinks_while_its_call_waits_is_not_read(tmp_path: Path) -> None:
    """Whether its form was read (and it waits to be merged) or not."""

    @virtual
    async def story(loop: VirtualLoop) -> None:
        door = Door(loop, hang())
        door.proxy.regions = ClientRegions(is_local=lambda: True, directory=tmp_path)
        (tmp_path / "r").write_bytes(bytes(8))
        door.proxy.regions.registered("r", "/r", 0, 8)
        door.backend.answers["echo"] = replace(ECHO, lone_reason="ensemble")
        first = door.ask(call())
        await door.settle()
        odd = door.ask(http(b'{"shared_memory_region":"r"}'))
        read = door.ask(call(replace(tensor(), data=b"", ref=ShmRef("r", 0, 2))))
        await door.settle()
        os.truncate(tmp_path / "r", 0)
        door.backend.resume()
        await ends(first)
        for outcome in await asyncio.gather(odd, read, return_exceptions=True):
            assert isinstance(outcome, Shielded)
            assert "shrunk-region" in str(outcome)

    story()


def test_the_policy_file_changes_it_while_it_runs() -> None:
    @virtual
    async def story(loop: VirtualLoop) -> None:
        door = door_of(loop, echo=TEXTS)
        intake = Intake({"default": SloClass("default")}, lambda _: "default")
        live = LivePolicy(door.scheduler, door.driver, intake, door.proxy, "lite")
        assert isinstance(await ended(door, http(CLASSES)), Shielded)
        text = "shield: {allow: [class-of-text], guard_regions: false}"
        live.adopt(parse_policy(text), loop.now_ns())
        assert isinstance(await ended(door, http(CLASSES)), HttpReply)
        assert not door.proxy.shield.guard.enabled
        live.adopt(parse_policy("shield: {enabled: true}"), loop.now_ns())
        assert isinstance(await ended(door, http(CLASSES)), Shielded)
        assert door.proxy.shield.guard.enabled

    story()

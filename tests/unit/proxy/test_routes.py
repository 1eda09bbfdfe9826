"""The way of calls that are alike: gone unasked, and forgotten when anything changes."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from tests.helpers import MS
from tests.unit.proxy.calls import ECHO, call, hints, tensor
from tests.unit.proxy.scene import data, filled, virtual
from tests.unit.proxy.test_service import BYTES_MAX, Door
from tests.virtual_loop import VirtualLoop
from tritonsched import errors
from tritonsched.core.request import SloClass, Tenant
from tritonsched.proxy import routes
from tritonsched.proxy.intake import Intake
from tritonsched.proxy.service import Proxy
from tritonsched.tensors import Answer, GrpcReply, MergedReply, ShmRef, Tensor

FORM = b"head"


class Way(Door):
    """A door whose calls are submitted, as those over HTTP/2 are. ends: how they ended."""

    def __init__(self, loop: VirtualLoop, *steps: Any) -> None:
        super().__init__(loop, *steps)
        self.ends: list[Answer | errors.TritonschedError] = []

    async def go(self, *inputs: Tensor, send: Any = None, **fields: Any) -> Any:
        """How such a call ends, if it does in time."""
        made = call(*inputs, **({"form": FORM} | fields))
        made.received_ns = self.loop.now_ns()
        self.proxy.submit(made, self.ends.append, send)
        await self.loop.pause(50 * MS)
        return self.ends.pop() if self.ends else None

    @property
    def known(self) -> int:
        return len(self.proxy._routes)


def _not_again(*_: Any, **__: Any) -> Any:
    raise AssertionError("asked again")


@virtual
async def test_a_call_like_another_goes_its_way_unasked(loop: VirtualLoop) -> None:
    """And is answered with its own data, by its own deadline."""
    way = Way(loop)
    assert data(await way.go(filled(1))) == b"\1\1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Intake, "terms", _not_again)
        assert data(await way.go(filled(2))) == b"\2\2"
        soon = await way.go(hints=hints(header_ms="1"))
        assert isinstance(soon, errors.DeadlineUnreachable)
        assert isinstance(await way.go(hints=hints(header_ms="x")), errors.BadDeadline)
        told = await way.go(explain=True, hints=hints(header_ms="30"))
        assert isinstance(told, MergedReply)
        assert told.explain is not None
        assert told.explain.slack_ns is not None
    assert way.proxy.tensor_bytes == 0


@virtual
async def test_whose_class_tenant_model_or_version_differs_is_asked(loop: VirtualLoop) -> None:
    way = Way(loop)
    for fields in ({"version": "2"}, {}, {"slo": "tight"}, {"tenant": "lab"}):
        assert data(await way.go(filled(3), **fields)) == b"\3\3"
    assert way.known == 3  # news of a model, as of its version 2, voids all
    assert way.ledger.submitted == {"default": 3, "tight": 1}
    assert isinstance(await way.go(slo="gold"), errors.UnknownClass)


async def _invalidate(way: Way) -> None:
    await way.proxy.invalidate("echo")


async def _reconnected(way: Way) -> None:
    way.proxy.reconnected()


async def _refresh(way: Way) -> None:
    way.backend.answers["echo"] = replace(ECHO, max_batch_size=4)
    await way.proxy.refresh()


async def _gone(way: Way) -> None:
    way.backend.answers["echo"] = None
    await way.proxy.refresh()


async def _classes(way: Way) -> None:
    way.proxy._intake.adopt({"default": SloClass("default", 9 * MS)}, lambda _: "default")


async def _tenants(way: Way) -> None:
    way.proxy._intake.adopt_tenants({"lab": Tenant("lab")}, "lab")


async def _families(way: Way) -> None:
    way.proxy.adopt_families({"echo": ("echo_a",)}, {})


@pytest.mark.parametrize(
    "change", [_invalidate, _reconnected, _refresh, _gone, _classes, _tenants, _families]
)
def test_a_way_is_forgotten_with_what_it_was_found_by(
    change: Callable[[Way], Awaitable[None]],
) -> None:
    @virtual
    async def tried(loop: VirtualLoop) -> None:
        way = Way(loop)
        await way.go()
        assert way.known == 1
        await change(way)
        assert way.known == 0

    tried()


@virtual
async def test_a_model_of_fewer_rows_takes_none_of_the_old_way(loop: VirtualLoop) -> None:
    way = Way(loop)
    await way.go(tensor(2))
    way.backend.answers["echo"] = replace(ECHO, max_batch_size=1)
    await way.proxy.invalidate("echo")
    assert isinstance(await way.go(tensor(2)), GrpcReply)
    assert way.lone == [("echo", "rows-exceed")]


@virtual
async def test_a_new_policy_counts_for_the_next_call(loop: VirtualLoop) -> None:
    way = Way(loop)
    await way.go()
    way.proxy._intake.adopt_tenants({"lab": Tenant("lab")}, "lab")
    await way.go()
    way.proxy._intake.adopt({"default": SloClass("default", 1)}, lambda _: "default")
    assert isinstance(await way.go(), errors.DeadlineUnreachable)
    assert {tenant for tenant, _ in way.ledger.tenants} == {"default", "lab"}


BYTES = Tensor("INPUT", "BYTES", (1, 1), b"\1\0\0\0x")
REF = Tensor("INPUT", "UINT8", (1, 2), b"", ShmRef("r", 0, 2))


@pytest.mark.parametrize(
    "given",
    [
        {"form": None},
        {"parameters": MappingProxyType({"priority": 1})},
        {"reservation": "cam"},
        {"inputs": (BYTES,)},
        {"inputs": (REF,)},
        {"output_refs": (("OUTPUT", ShmRef("r", 0, 2)),)},
        {"server": "left"},
        {"version": "latest"},
        {"lone_reason": "head-form"},
    ],
)
def test_a_call_in_which_others_have_a_say_is_asked_each_time(given: dict[str, Any]) -> None:
    @virtual
    async def tried(loop: VirtualLoop) -> None:
        way = Way(loop)
        await way.go(**given)
        assert way.known == 0

    tried()


@virtual
async def test_a_frame_does_not_go_the_way_of_a_call_without_a_stream(loop: VirtualLoop) -> None:
    way = Way(loop)
    await way.go()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Proxy, "_along", _not_again)
        assert data(await way.go(reservation="cam"))
        assert data(await way.go(send=_sent))


async def _sent(_: int) -> GrpcReply:
    return GrpcReply("OK", "", b"")


@virtual
async def test_what_is_refused_is_refused_on_every_way(loop: VirtualLoop) -> None:
    way = Way(loop)
    await way.go()
    way.held.take(BYTES_MAX - 10)
    assert isinstance(await way.go(raw=bytes(11)), errors.MemoryFull)
    assert data(await way.go(raw=bytes(10)))
    way.proxy.drain()
    assert isinstance(await way.go(), errors.Draining)


@virtual
async def test_the_ways_remembered_are_bounded(loop: VirtualLoop) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "ROUTES_MAX", 2)
        way = Way(loop)
        for form in (b"a", b"b", b"c", b"a"):
            assert data(await way.go(form=form))
            assert 1 <= way.known <= 2

"""Tenants at the sidecar's door: who asks, with whom they merge, what is theirs when it is full."""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.helpers import MS
from tests.unit.proxy.calls import call, tensor
from tests.unit.proxy.scene import ends, filled, virtual
from tests.unit.proxy.test_service import BYTES_MAX, Door
from tests.virtual_loop import VirtualLoop
from tritonsched.backend.scripted import hang
from tritonsched.config.load import parse_policy
from tritonsched.core.batch import Grant, Refuse
from tritonsched.core.request import NEVER_NS, SloClass, Tenant
from tritonsched.core.reservation import RefusalReason, Reservation
from tritonsched.errors import MemoryFull, TenantOverShare
from tritonsched.frontend import grpc_codec, grpc_wire, http_codec
from tritonsched.proxy.held import Held
from tritonsched.proxy.intake import Intake
from tritonsched.proxy.mergeable import merge_key
from tritonsched.proxy.named import CLASS, TENANT, of_the_model
from tritonsched.proxy.reload import LivePolicy
from tritonsched.proxy.reserving import Entry, Reservations
from tritonsched.proxy.room import Room
from tritonsched.tensors import InferCall

SHOP = Tenant("shop", weight=3.0, share=0.5, reservations_max=1, merges_own=True)
LAB = Tenant("lab", share=0.25)
GUEST = Tenant("guest", weight=0.5)
RULES = {rule.name: rule for rule in (SHOP, LAB, GUEST)}
CLASSES = {"default": SloClass("default"), "gold": SloClass("gold", 50 * MS, weight=2.0)}


def intake(**streams: Reservation) -> Intake:
    made = Intake(CLASSES, lambda _: "default", lambda name: streams.get(name or ""))
    made.adopt_tenants(RULES, "guest")
    return made


def asked(made: InferCall, of: Intake | None = None) -> tuple[str, str, float]:
    """Tenant, class and weight of the request that the call becomes."""
    request, _ = (of or intake()).request(made, signature=1, alone=False)
    return request.tenant, request.slo, request.weight


# -- who asks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "tenant", "slo", "weight"),
    [
        (call(), "guest", "default", 0.5),
        (call(tenant="lab"), "lab", "default", 1.0),
        (call(tenant="shop", slo="gold"), "shop", "gold", 6.0),
        (call(tenant="nobody"), "guest", "default", 0.5),
        (call(tenant=""), "guest", "default", 0.5),
        (call(parameters={TENANT: "shop", CLASS: "gold"}), "shop", "gold", 6.0),
        (call(tenant="lab", parameters={TENANT: "shop"}), "lab", "default", 1.0),
        (call(parameters={TENANT: 7, CLASS: True}), "guest", "default", 0.5),
    ],
)
def test_a_tenant_is_who_is_named_and_known(
    made: InferCall, tenant: str, slo: str, weight: float
) -> None:
    assert asked(made) == (tenant, slo, weight)


def test_without_tenants_in_the_policy_file_everybody_is_the_default() -> None:
    made = Intake(CLASSES, lambda _: "default")
    assert asked(call(tenant="shop", slo="gold"), made) == ("default", "gold", 2.0)


def test_a_frame_is_of_the_tenant_that_reserved_it_unless_it_says_otherwise() -> None:
    stream = Reservation(1, "echo", 100 * MS, 40 * MS, 9, tenant="lab")
    made = intake(s=stream)
    assert asked(call(reservation="s"), made)[0] == "lab"
    assert asked(call(reservation="s", tenant="shop"), made)[0] == "shop"
    assert asked(call(reservation="gone"), made)[0] == "guest"


def test_header_and_metadata_name_it_on_every_way_in() -> None:
    body = json.dumps({"inputs": []}).encode()
    http = http_codec.decode(
        model="m",
        version="",
        path="/v2/models/m/infer",
        headers=(("X-Tritonsched-Tenant", "shop"),),
        body=body,
        received_ns=0,
    )
    message = pb.ModelInferRequest(model_name="m").SerializeToString()
    metadata = (("x-tritonsched-tenant", "shop"),)
    careful = grpc_codec.decode(message, metadata, received_ns=0, remaining_ns=None)
    fast = grpc_wire.decode(message, metadata, received_ns=0, remaining_ns=None)
    assert {http.tenant, careful.tenant, fast.tenant} == {"shop"}


@pytest.mark.parametrize("named", ["shop", 7])
def test_a_parameter_names_it_also_where_the_call_goes_alone(named: str | int) -> None:
    """Of those that were not read, ours are all that is kept."""
    parameters = {TENANT: named, "k": 1}
    body = json.dumps({"inputs": [], "parameters": parameters}).encode()
    path = "/v2/models/m/infer"
    http = http_codec.decode(model="m", version="", path=path, headers=(), body=body, received_ns=0)
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="IN", datatype="FP32", shape=[1])
    if isinstance(named, str):
        request.parameters[TENANT].string_param = named
    else:
        request.parameters[TENANT].int64_param = named
    grpc = grpc_wire.decode(request.SerializeToString(), (), received_ns=0, remaining_ns=None)
    assert http.lone_reason
    assert grpc.lone_reason
    expected = {TENANT: named} if named == "shop" else {}
    assert http.parameters == grpc.parameters == expected


# -- with whom they merge -------------------------------------------------------------------------


def test_our_own_parameters_neither_part_batches_nor_reach_the_model() -> None:
    theirs = {"k": 1}
    named = call(parameters={TENANT: "lab", CLASS: "gold", **theirs})
    assert merge_key(named) == merge_key(call(parameters=theirs))
    assert of_the_model(named.parameters) == theirs
    assert of_the_model(theirs) is theirs


@virtual
async def test_tenants_share_batches_but_who_merges_its_own_alone(loop: VirtualLoop) -> None:
    door = Door(loop)
    door.proxy._intake.adopt_tenants(RULES, "guest")
    await door.ask()  # what it says of the model is known from here on
    names = ("lab", "shop", "guest", "shop", "lab")
    asked_ = [door.ask(call(filled(n), tenant=name)) for n, name in enumerate(names)]
    await ends(*asked_)
    assert sorted(batch.rows for batch in door.backend.batches) == [1, 2, 3]


@virtual
async def test_a_judgement_that_is_remembered_is_the_tenants_own(loop: VirtualLoop) -> None:
    """Equal heads, as a steady client sends them: the second time nothing is worked out."""
    door = Door(loop)
    door.proxy._intake.adopt_tenants(RULES, "guest")
    await door.ask(call(form=b"head", tenant="shop"))
    names = ("lab", "shop", "lab", "shop")
    calls = [call(filled(n), form=b"head", tenant=name) for n, name in enumerate(names)]
    await ends(*[door.ask(made) for made in calls])
    assert sorted(batch.rows for batch in door.backend.batches) == [1, 2, 2]


@virtual
async def test_frames_merge_with_the_stream_that_their_tenant_reserved(loop: VirtualLoop) -> None:
    """The signature that a plan counts on is the one that its frames get."""
    door = Door(loop)
    door.proxy._intake.adopt_tenants(RULES, "guest")
    made, signature = await _judged(door, call(tenant="shop"))
    other, shared = await _judged(door, call(tenant="lab"))
    assert (made, other) == ("", "")
    assert signature != shared


async def _judged(door: Door, made: InferCall) -> tuple[str, int]:
    await door.ask(replace(made))
    info = door.proxy._models.known("echo", "")
    assert info is not None
    return door.proxy._judged(made, info)


# -- room -----------------------------------------------------------------------------------------


@given(
    calls=st.lists(
        st.tuples(st.sampled_from(["shop", "lab", "guest", None]), st.integers(1, 60)), max_size=40
    ),
    whole=st.integers(1, 100),
)
def test_nobody_below_its_share_of_the_memory_is_refused(
    calls: list[tuple[str | None, int]], whole: int
) -> None:
    """And what is held is bounded by the bound and the shares, but for a single larger call."""
    held, largest = Held(), 0
    room = Room(held, intake(), whole)
    for name, size in calls:
        who = RULES.get(name or "guest", GUEST)
        before, mine = held.size_bytes, held.bytes_of(who.name)
        refused = room.refused(call(raw=bytes(size), tenant=name))
        if refused is None:
            held.take(size, who.name)
            largest = max(largest, size) if not before else largest
        else:
            assert isinstance(refused, TenantOverShare)
            assert refused.retry_after_ns
            assert before + size > whole
            assert mine + size > who.part_of(whole)
        shares = sum(rule.part_of(whole) for rule in RULES.values())
        assert held.size_bytes <= max(whole, largest) + shares


def test_without_shares_the_memory_is_just_full() -> None:
    held = Held()
    held.take(100, "guest")
    room = Room(held, Intake(CLASSES, lambda _: "default"), 100)
    assert isinstance(room.refused(call(raw=b"x", tenant="shop")), MemoryFull)


@virtual
async def test_bytes_are_given_back_to_who_had_them(loop: VirtualLoop) -> None:
    """One that hangs, one of a model that is being asked about, one that was served."""
    door = Door(loop, hang())
    door.proxy._intake.adopt_tenants(RULES, "guest")
    first = door.ask(call(raw=bytes(BYTES_MAX), tenant="guest"))
    await door.settle()
    (refused,) = await ends(door.ask(call(raw=b"x", tenant="guest")))
    assert isinstance(refused, TenantOverShare)
    door.backend.gate.clear()
    second = door.ask(call(raw=bytes(20), version="2", tenant="lab"))
    await door.settle()
    assert (door.held.bytes_of("guest"), door.held.bytes_of("lab")) == (BYTES_MAX, 20)
    (over,) = await ends(door.ask(call(raw=bytes(6), tenant="lab")))
    assert isinstance(over, TenantOverShare)
    door.backend.gate.set()
    door.backend.resume()
    await ends(first, second)
    assert (door.held.bytes_of("guest"), door.held.bytes_of("lab")) == (0, 0)


# -- streams --------------------------------------------------------------------------------------


@virtual
async def test_a_tenants_streams_are_bounded_and_others_are_not_refused_for_them(
    loop: VirtualLoop,
) -> None:
    kept = Reservations(reserve=lambda _: None, release=lambda _: None, clock=loop.now_ns)
    kept.tenant_of = intake().tenant_of
    first = await _granted(kept, "shop", loop)
    assert isinstance(first, Entry)
    refused = await _granted(kept, "shop", loop)
    assert isinstance(refused, Refuse)
    assert refused.reason is RefusalReason.TENANT_TOO_MANY
    assert isinstance(await _granted(kept, "lab", loop), Entry)
    kept.release(first.name)
    assert isinstance(await _granted(kept, "shop", loop), Entry)
    kept.close()


async def _granted(kept: Reservations, tenant: str, loop: VirtualLoop) -> Entry | Refuse:
    """The core grants whatever reaches it."""
    wanted = Reservation(9, "echo", 100 * MS, 40 * MS, 9, tenant=tenant)
    answer = asyncio.ensure_future(kept.ask(wanted))
    await loop.pause(1)
    for number in list(kept._asked):
        kept.decided(Grant(replace(wanted, id=number), "gpu", plan=()))
    return await answer


# -- the policy file ------------------------------------------------------------------------------


@virtual
async def test_a_reload_changes_who_may_ask_and_what_they_have(loop: VirtualLoop) -> None:
    door = Door(loop)
    live = LivePolicy(door.scheduler, door.driver, door.proxy._intake, door.proxy, "lite")
    text = "tenants: {shop: {weight: 3, share: 0.5}}\ndefault_tenant: shop\nfairness: {strength: 2}"
    live.adopt(parse_policy(text), loop.now_ns())
    await door.ask()
    assert door.ledger.submitted.total() == 1
    request, _ = door.proxy._intake.request(call(tensor()), signature=1, alone=False)
    assert (request.tenant, request.weight, request.deadline_ns) == ("shop", 3.0, NEVER_NS)
    assert door.scheduler.tenants.fairness.strength == 2.0
    assert door.scheduler.tenants.rules["shop"].share == 0.5
    live.adopt(parse_policy("default_class: default"), loop.now_ns())
    request, _ = door.proxy._intake.request(call(tensor()), signature=1, alone=False)
    assert (request.tenant, request.weight) == ("default", 1.0)

"""Deadlines and classes: precedence, clipping, and what is no time at all."""

import pytest

from tests.unit.proxy.calls import call, hints, tensor
from tritonsched.core.request import NEVER_NS, SloClass, Tenant
from tritonsched.errors import BadDeadline, UnknownClass
from tritonsched.proxy.intake import (
    DEADLINE_NS_MAX,
    STANDINGS_MAX,
    Intake,
    relative_deadline_ns,
)
from tritonsched.proxy.named import CLASS, TENANT
from tritonsched.tensors import DeadlineHints, Tensor

MS = 1_000_000


def intake() -> Intake:
    classes = {
        "default": SloClass("default"),
        "gold": SloClass("gold", relative_deadline_ns=30 * MS, weight=2.0),
    }
    return Intake(classes, lambda model: "gold" if model == "tight" else "default")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (hints(), None),
        (hints(grpc_remaining_ns=5, header_ms="1", timeout_us=1, envoy_ms="1"), 5),
        (hints(header_ms="2.5", timeout_us=1, envoy_ms="1"), 2_500_000),
        (hints(timeout_us=7, envoy_ms="1"), 7_000),
        (hints(timeout_us=0, envoy_ms="1"), MS),
        (hints(timeout_us=0), None),
        (hints(header_ms="0"), 0),
        (hints(header_ms="1e300"), DEADLINE_NS_MAX),
        (hints(header_ms="inf"), DEADLINE_NS_MAX),
        (hints(grpc_remaining_ns=1 << 80), DEADLINE_NS_MAX),
        (hints(timeout_us=1 << 63), DEADLINE_NS_MAX),
        (hints(grpc_remaining_ns=-4), -4),
    ],
)
def test_the_first_source_present_counts(given: DeadlineHints, expected: int | None) -> None:
    assert relative_deadline_ns(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        hints(header_ms="nan"),
        hints(header_ms="-1"),
        hints(header_ms="soon"),
        hints(header_ms=""),
        hints(header_ms="1e5x" * 100),
        hints(timeout_us=-5),
        hints(envoy_ms="-0.5"),
    ],
)
def test_what_is_no_time_is_refused_with_its_name(given: DeadlineHints) -> None:
    with pytest.raises(BadDeadline, match=r"x-request-deadline-ms|timeout") as caught:
        relative_deadline_ns(given)
    assert len(str(caught.value)) < 200


def test_a_client_can_tighten_its_class() -> None:
    made = call(model="tight", received_ns=100, hints=hints(header_ms="10"))
    request, clipped = intake().request(made, signature=1, alone=False)
    assert (request.deadline_ns, clipped, request.weight) == (100 + 10 * MS, False, 2.0)


def test_a_later_wish_than_the_class_allows_is_clipped_and_told() -> None:
    made = call(model="tight", received_ns=100, hints=hints(header_ms="1000"))
    request, clipped = intake().request(made, signature=1, alone=False)
    assert (request.deadline_ns, clipped) == (100 + 30 * MS, True)


def test_without_any_deadline_there_is_none() -> None:
    request, clipped = intake().request(call(), signature=1, alone=False)
    assert (request.deadline_ns, clipped) == (NEVER_NS, False)


def test_a_named_class_beats_the_models_default() -> None:
    request, _ = intake().request(call(model="tight", slo="default"), signature=1, alone=False)
    assert request.slo == "default"


def test_an_unknown_class_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(UnknownClass, match="use one of default, gold"):
        intake().request(call(slo="platinum"), signature=1, alone=False)


def test_ids_are_unique_and_rows_come_from_the_first_input() -> None:
    taker = intake()
    made = [taker.request(call(tensor(rows=3)), signature=1, alone=False)[0] for _ in range(3)]
    assert len({request.id for request in made}) == 3
    assert made[0].rows == 3


def test_an_unreadable_call_counts_as_one_row() -> None:
    unread = call(lone_reason="raw")
    unread.inputs = ()
    for made in (unread, call(tensor(rows=0)), call(Tensor("INPUT", "UINT8", (), b"x"))):
        request, _ = intake().request(made, signature=0, alone=True)
        assert (request.rows, request.alone) == (1, True)


def standing(taker: Intake, **fields: object) -> tuple[str, str]:
    request, _ = taker.request(call(**fields), signature=1, alone=False)
    return request.slo, request.tenant


def test_what_is_remembered_of_a_client_is_what_it_names_and_what_the_policy_says_now() -> None:
    taker = intake()
    assert standing(taker) == ("default", "default")
    assert standing(taker, slo="gold") == ("gold", "default")
    assert standing(taker, parameters={CLASS: "gold", TENANT: "lab"}) == ("gold", "default")
    assert standing(taker, parameters={"mine": 1}) == ("default", "default")
    taker.adopt_tenants({"lab": Tenant("lab"), "shop": Tenant("shop")}, "shop")
    assert standing(taker) == ("default", "shop")
    assert standing(taker, tenant="lab") == ("default", "lab")
    assert standing(taker, parameters={TENANT: "lab"}) == ("default", "lab")
    assert standing(taker, tenant="nobody") == ("default", "shop")
    taker.adopt({"iron": SloClass("iron")}, lambda _: "iron")
    assert standing(taker, tenant="lab") == ("iron", "lab")
    with pytest.raises(UnknownClass):
        standing(taker, slo="gold")


def test_clients_cannot_fill_the_memory_with_names() -> None:
    taker = intake()
    for number in range(3 * STANDINGS_MAX):
        assert standing(taker, tenant=f"t{number}") == ("default", "default")
        assert len(taker._standings) <= STANDINGS_MAX

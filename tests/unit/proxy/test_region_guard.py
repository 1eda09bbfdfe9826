"""Whose a region is: what clients cannot name, see or close, and how that is switched off."""

import pytest

from tritonsched.errors import GuardedName, GuardedUse
from tritonsched.proxy.region_guard import RegionGuard

POOL = "tritonsched-12-0123abcd"


@pytest.mark.parametrize(
    "name", [POOL, f"//{POOL}", "/triton_python_backend_shm_region_1", "tritonsched-x"]
)
def test_what_is_not_a_clients_cannot_be_registered(name: str) -> None:
    guard = RegionGuard()
    with pytest.raises(GuardedName, match="not a client's"):
        guard.require_free("mine", name)
    with pytest.raises(GuardedName):
        guard.require_free_text(b'{"key":"\\u002f' + name.replace("t", "\\u0074").encode() + b'"}')


def test_a_clients_own_names_are_free() -> None:
    guard = RegionGuard()
    guard.require_free("input0_data", "/my-tritonsched-x", "")
    guard.require_free_text(b'{"key":"/input"')
    guard.require_unused(["input0_data", "tritonsched-x"])
    assert not guard.is_hidden("tritonsched-x")


def test_a_pool_is_a_region_that_nobody_registered() -> None:
    guard = RegionGuard()
    assert guard.is_hidden(POOL)
    with pytest.raises(GuardedUse, match=f"^Unable to find shared memory region: '{POOL}'$"):
        guard.require_unused(["mine", POOL])


def test_switched_off_it_guards_nothing() -> None:
    guard = RegionGuard()
    guard.enabled = False
    guard.require_free(POOL)
    guard.require_free_text(POOL.encode())
    guard.require_unused([POOL])
    assert not guard.is_hidden(POOL)

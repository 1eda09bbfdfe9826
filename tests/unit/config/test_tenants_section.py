"""Tenants in a policy file: what the core makes of them, and what is refused with its place."""

import pytest

from tritonsched.config.faults import PolicyFaults
from tritonsched.config.load import parse_policy
from tritonsched.config.tenants_section import TENANTS_MAX
from tritonsched.core.fairness import Fairness, Tenants
from tritonsched.core.request import Tenant

FULL = """
tenants:
  shop: {weight: 2.5, share: 0.25, queue_requests_max: 64, reservations_max: 3, merge: own}
  lab: {share: 0.75}
default_tenant: lab
fairness: {target: 0.8, strength: 5}
"""


def faults_of(text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(PolicyFaults) as caught:
        parse_policy(text)
    return [(fault.line, fault.path, fault.message) for fault in caught.value.faults]


def test_without_a_word_of_them_there_is_one_tenant_with_nothing_of_its_own() -> None:
    policy = parse_policy("default_class: default")
    assert policy.tenant_rules() == {"default": Tenant("default")}
    assert (policy.default_tenant, policy.fairness_rule()) == ("default", Fairness())


def test_every_key_reaches_the_core() -> None:
    policy = parse_policy(FULL)
    rules = policy.tenant_rules()
    assert rules["shop"] == Tenant("shop", 2.5, 0.25, 64, 3, merges_own=True)
    assert rules["lab"] == Tenant("lab", share=0.75)
    assert set(rules) == {"default", "shop", "lab"}
    assert policy.fairness_rule() == Fairness(target=0.8, strength=5.0)


@pytest.mark.parametrize(
    ("text", "line", "path", "said"),
    [
        ("default_tenant: shpo\ntenants: {shop: {}}", 1, "default_tenant", "did you mean 'shop'?"),
        (
            "tenants:\n  a: {share: 0.6}\n  b: {}\n  c: {share: 0.5}",
            4,
            "tenants.c.share",
            "add up to 1.1; all together 1 at most",
        ),
        ("tenants:\n  a: {share: 1.5}", 2, "tenants.a.share", "less than or equal to 1"),
        ("tenants:\n  a: {sahre: 0.5}", 2, "tenants.a.sahre", "did you mean 'share'?"),
        ("tenants:\n  a: {merge: none}", 2, "tenants.a.merge", "'all' or 'own'"),
        ("tenants:\n  a: {weight: 0}", 2, "tenants.a.weight", "greater than 0"),
        ("fairness: {target: 0}", 1, "fairness.target", "greater than 0"),
        ("fairness: {strength: -1}", 1, "fairness.strength", "greater than or equal to 0"),
    ],
)
def test_a_fault_stands_where_it_was_made(text: str, line: int, path: str, said: str) -> None:
    ((found_line, found_path, message),) = faults_of(text)
    assert (found_line, found_path) == (line, path)
    assert said in message


def test_shares_that_are_whole_on_paper_are_whole() -> None:
    """Ten times 0.1 is 0.9999999999999999, and in another order more than 1."""
    ten = "\n".join(f"  t{number}: {{share: 0.1}}" for number in range(10))
    rules = parse_policy(f"tenants:\n{ten}").tenant_rules()
    known = Tenants()
    known.adopt(rules, Fairness())
    assert known.rules["t9"].part_of(4096) == 409


def test_tenants_are_bounded() -> None:
    many = "\n".join(f"  t{number}: {{}}" for number in range(TENANTS_MAX + 1))
    ((_, path, _),) = faults_of(f"tenants:\n{many}")
    assert path == "tenants"

"""Classes and models in a policy file: shapes of worth, variants, and what is refused."""

import pytest

from tritonsched.config.faults import PolicyFaults
from tritonsched.config.load import parse_policy
from tritonsched.core.request import SloClass, Utility

MS = 1_000_000


def classes(text: str) -> dict[str, SloClass]:
    return parse_policy(f"classes:\n  gold: {text}").slo_classes()


def test_worth_is_a_step_unless_something_else_is_said() -> None:
    assert classes("{deadline_ms: 30}")["gold"] == SloClass("gold", 30 * MS)
    assert classes("{deadline_ms: 30, soft_ms: 30}")["gold"].utility is None


def test_a_soft_deadline_is_a_share_of_the_hard_one() -> None:
    found = classes("{deadline_ms: 2000, soft_ms: 1000}")["gold"]
    assert found.utility == Utility.linear(0.5)


def test_points_are_milliseconds_and_shares_of_the_weight() -> None:
    found = classes("{deadline_ms: 200, utility: [[50, 1.0], [100, 0.5], [200, 0.25]]}")["gold"]
    assert found.utility == Utility(((0.25, 1.0), (0.5, 0.5), (1.0, 0.25)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{soft_ms: 10}", "need a deadline_ms"),
        ("{utility: [[10, 1.0]]}", "need a deadline_ms"),
        ("{deadline_ms: 30, soft_ms: 40}", "lie in [0, 30] ms"),
        ("{deadline_ms: 30, soft_ms: 10, utility: [[10, 1.0]]}", "keep one of them"),
        ("{deadline_ms: 30, utility: [[10, 0.5], [20, 0.6]]}", "values must not"),
        ("{deadline_ms: 30, utility: [[10, 0.5], [10, 0.4]]}", "shares must rise"),
        ("{deadline_ms: 30, utility: [[10]]}", "at least 2 items"),
        ("{deadline_ms: 30, utility: []}", "at least 1 item"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(PolicyFaults) as caught:
        classes(text)
    (fault,) = caught.value.faults
    assert said in fault.message
    assert fault.path.startswith("classes.gold")


def test_variants_and_accuracies_are_told_by_model() -> None:
    policy = parse_policy("models: {c: {variants: [b, a]}, a: {accuracy: 0.7}, d: {}}")
    assert policy.families() == {"c": ("b", "a")}
    assert policy.accuracies() == {"a": 0.7}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{variants: [a, a]}", "variant 'a' is named twice"),
        ("{variants: []}", "at least 1 item"),
        ("{accuracy: 75.1}", "less than or equal to 1"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(PolicyFaults) as caught:
        parse_policy(f"models:\n  c: {text}")
    (fault,) = caught.value.faults
    assert said in fault.message
    assert fault.line == 2

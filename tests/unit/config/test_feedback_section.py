"""The section `feedback`: its values reach the core in the core's units."""

import pytest

from tritonsched.config.faults import PolicyFaults
from tritonsched.config.feedback_section import KEYS, UNITS
from tritonsched.config.load import parse_policy
from tritonsched.core.controllers import KNOBS, Bounds
from tritonsched.core.feedback import DEFAULT_BOUNDS, DEFAULT_KNOBS, FIELDS, Settings
from tritonsched.core.tuning import GUARD_NS, Tuning

MS = 1_000_000


def settings(text: str) -> Settings:
    return parse_policy(text).feedback_settings()


def test_every_knob_has_a_section_bounds_a_unit_and_a_field() -> None:
    assert set(KNOBS) == set(KEYS) == set(UNITS) == set(DEFAULT_BOUNDS) == set(FIELDS)


def test_the_default_is_the_cores_own() -> None:
    assert settings("") == Settings()
    assert parse_policy("").tuning() == Tuning()


def test_values_reach_the_core_in_its_units() -> None:
    made = settings(
        "feedback: {freeze: true, miss_ratio_max: 0.002, knobs: [window, queue],"
        " window_ms: {min: 0.5, max: 2}, guard_ms: {max: 1}}\n"
        "limits: {queue_requests_max: 100}\n"
    )
    assert (made.knobs, made.frozen, made.miss_ratio_max) == (
        frozenset({"window", "queue"}), True, 0.002,
    )  # fmt: skip
    assert made.bounds["window"] == Bounds(MS / 2, 2 * MS)
    assert made.bounds["guard"] == Bounds(GUARD_NS, MS)
    assert made.bounds["queue"] == Bounds(8, 100)


def test_one_bound_given_wins_over_the_other_built_in_one() -> None:
    made = settings("feedback: {safety: {min: 3}, guard_ms: {max: 0.1}, queue_requests: {min: 9}}")
    assert made.bounds["safety"] == Bounds(3, 3)
    assert made.bounds["guard"] == Bounds(0.1 * MS, 0.1 * MS)
    tight = settings("limits: {queue_requests_max: 4}")
    assert tight.bounds["queue"] == Bounds(4, 4)


def test_switched_off_nothing_moves_and_learning_can_be_switched_off_too() -> None:
    assert settings("feedback: {enabled: false}").knobs == frozenset()
    assert settings("").knobs == DEFAULT_KNOBS
    assert not parse_policy("feedback: {learning: false}").tuning().learning


def test_where_feedback_starts_can_be_said() -> None:
    tuning = parse_policy("scheduler: {safety: 1.5, guard_ms: 1, reply_ms: 2}").tuning()
    assert (tuning.safety, tuning.guard_ns, tuning.reply_ns) == (1.5, MS, 2 * MS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("feedback: {knobs: [widow]}", "1:20: feedback.knobs.0: "),
        ("feedback: {knobs: [widow]}", "did you mean 'window'?"),
        ("feedback: {freze: true}", "1:12: feedback.freze: unknown key; did you mean 'freeze'?"),
        ("feedback: {safety: {min: 2, max: 1}}", "min 2 is above max 1"),
        ("feedback: {safety: {mn: 2}}", "1:21: feedback.safety.mn: unknown key"),
        ("feedback: {miss_ratio_max: 0}", "feedback.miss_ratio_max: "),
    ],
)
def test_faults_are_told_where_they_stand(text: str, told: str) -> None:
    with pytest.raises(PolicyFaults) as caught:
        parse_policy(text)
    assert told in str(caught.value)

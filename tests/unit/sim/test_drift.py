"""A device throttled to 60 % in the middle third of a run at load 0.6: goal G6 of the study, on a
run so short that the two changes weigh more than in the benchmark's (tests/bench/drift.py).
"""

from tests.bench.drift import Sum, run


def total(*, learning: bool) -> Sum:
    found = Sum()
    found.add(
        *run("mix", 1, drift=True, learning=learning, rule="lite", length=4_000, rtt_ns=1_000_000)
    )
    return found


def test_a_throttled_device_is_followed_within_fifteen_batches_and_hardly_anybody_is_late() -> None:
    made, static = total(learning=True), total(learning=False)
    assert len(made.batches) == 2
    assert max(made.batches) <= 15
    assert made.missed <= 0.01 * (made.sent - made.refused)
    assert made.served >= 0.93 * made.sent
    assert static.missed > 2 * made.missed
    errors = sorted(made.errors)
    assert errors[int(0.99 * len(errors))] <= 0.10

"""What a rule needs is there before it serves, or what it does without is said."""

import pytest

from tritonsched.core.policies import kernels
from tritonsched.proxy import rules


def test_the_look_ahead_is_compiled_and_nothing_is_said() -> None:
    said: list[str] = []
    rules.prepare("lookahead", said.append)
    assert kernels.compiled() is not None
    assert not said


def test_a_look_ahead_that_cannot_be_compiled_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(rules, "compiled", lambda: None)
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    for rule in ("lite", "lookahead"):
        rules.prepare(rule, said.append)
    assert said == ["rule 'lookahead' chooses as 'lite': numba is missing (extra `fast`)"]

"""Where sequences and streams live when there are several servers."""

import pytest

from tests.unit.proxy.calls import call
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.proxy import homes as module
from tritonsched.proxy.homes import Homes
from tritonsched.tensors import InferCall

BOTH = ModelInfo("m", "", 0, {}, {}, ("l/g", "l/h", "r/g"), servers=("left", "left", "right"))


def step(number: int, *, start: bool = False, end: bool = False) -> InferCall:
    marks = {"sequence_start": True} if start else {}
    return call(parameters={"sequence_id": number, "sequence_end": end, **marks})


def settled(homes: Homes, made: InferCall, number: int | None = None) -> str:
    homes.settle(made, BOTH, number, is_stream=number is None)
    return made.server


def test_sequences_are_spread_and_stay_where_they_began() -> None:
    homes = Homes()
    begun = [settled(homes, step(n, start=True), n) for n in range(4)]
    assert begun == ["left", "right", "left", "right"]
    assert [settled(homes, step(n), n) for n in range(4)] == begun
    assert [settled(homes, step(n, end=True), n) for n in range(4)] == begun
    assert len(homes) == 0


def test_a_sequence_whose_server_is_away_keeps_it_until_it_starts_anew() -> None:
    up = {"left", "right"}
    homes = Homes(up.__contains__)
    assert settled(homes, step(1, start=True), 1) == "left"
    up.remove("left")
    assert settled(homes, step(1), 1) == "left"  # its state was there: it is refused
    assert settled(homes, step(1, start=True), 1) == "right"
    up.clear()
    assert settled(homes, step(2, start=True), 2) == "left"


def test_a_stream_is_given_a_server_once() -> None:
    homes = Homes()
    made = call()
    assert settled(homes, made) == "left"
    assert settled(homes, made) == "left"
    assert settled(homes, call()) == "right"


def test_what_keeps_no_state_and_a_single_server_have_no_home() -> None:
    homes = Homes()
    free, single = call(), call()
    homes.settle(free, BOTH, None, is_stream=False)
    homes.settle(single, ModelInfo("m", "", 0, {}, {}, ("g",)), 7, is_stream=False)
    assert (free.server, single.server, len(homes)) == ("", "", 0)


def test_sequences_remembered_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOMES_MAX", 2)
    homes = Homes()
    for number in range(5):
        settled(homes, step(number, start=True), number)
    assert len(homes) == 2

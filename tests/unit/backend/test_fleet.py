"""Several servers as one backend."""

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.backend.contract import BackendContract, batch, executed, lone_call, row
from tests.unit.backend.pair import LEFT, RIGHT, Pair
from tritonsched.backend import fleet as module
from tritonsched.backend.base import Backend
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.backend.fleet import Fleet, Registrations
from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import Wire


class OnLeft(Fleet):
    """What the contract knows nothing of: which device."""

    def send(self, call: Any, done: Any) -> None:
        super().send(replace(call, device="left/g"), done)


class TestContract(BackendContract):
    """The promises of a backend."""

    @pytest.fixture
    def backend(self, pair: Pair) -> Backend:
        return OnLeft(pair.fleet.backends, pair.members)


# -- work -----------------------------------------------------------------------------------------


async def test_a_batch_goes_to_the_server_of_its_device(pair: Pair) -> None:
    for device in ("right/gpu:0", "right/gpu:0", "left/gpu:0"):
        outcome = await executed(pair.fleet, replace(batch(row(1)), device=device))
        outcome.release()
    assert [len(pair.grpc[name].requests) for name in (LEFT, RIGHT)] == [1, 2]
    assert (pair.fleet.batches_shm, pair.fleet.batches_inline, pair.fleet.batches_cuda) == (3, 0, 0)
    assert (pair.fleet.fallbacks, pair.fleet.malformed) == (0, 0)


async def test_a_lone_call_goes_to_its_server_or_to_the_first_that_is_up(pair: Pair) -> None:
    made = lone_call(Wire.GRPC)
    await pair.fleet.forward(replace(made, server=RIGHT))
    pair.members.put(LEFT, up=False)
    await pair.fleet.forward(made)
    assert [len(pair.grpc[name].requests) for name in (LEFT, RIGHT)] == [0, 2]
    pair.members.put(RIGHT, up=False)
    with pytest.raises(TritonUnavailable, match="no Triton answers"):
        await pair.fleet.forward(made)


# -- what is known of models ----------------------------------------------------------------------


def form(**fields: Any) -> ModelInfo:
    return replace(ModelInfo("m", "", 8, {}, {}, devices=("gpu:0",)), **fields)


def told(pair: Pair, monkeypatch: pytest.MonkeyPatch, **infos: ModelInfo | None) -> None:
    for name, info in infos.items():

        async def answer(*_: str, info: ModelInfo | None = info) -> ModelInfo | None:
            return info

        monkeypatch.setattr(pair.fleet.backends[name], "model_info", answer)


async def test_a_model_runs_on_all_that_have_it_in_an_equal_form(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(pair, monkeypatch, left=form(), right=form(devices=("gpu:0", "gpu:1"), accuracy=0.5))
    info = await pair.fleet.model_info("m", "")
    assert info is not None
    assert info.devices == ("left/gpu:0", "right/gpu:0", "right/gpu:1")
    assert info.servers == (LEFT, RIGHT, RIGHT)
    assert pair.said == []


@pytest.mark.parametrize("other", [{"max_batch_size": 4}, {"lone_reason": "sequence"}])
async def test_where_forms_differ_the_first_serves_alone_and_it_is_said_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    told(pair, monkeypatch, left=form(), right=form(**other))
    for _ in range(2):
        info = await pair.fleet.model_info("m", "")
        assert info is not None
        assert info.servers == (LEFT,)
    (line,) = pair.said
    assert "model 'm' has another form on server 'right' than on 'left'" in line


async def test_who_does_not_have_it_or_is_away_does_not_count(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(pair, monkeypatch, left=None, right=form())
    info = await pair.fleet.model_info("m", "")
    assert info is not None
    assert info.servers == (RIGHT,)
    told(pair, monkeypatch, right=None)
    assert await pair.fleet.model_info("m", "") is None
    pair.members.put(LEFT, up=False)
    pair.members.put(RIGHT, up=False)
    with pytest.raises(TritonUnavailable):
        await pair.fleet.model_info("m", "")


async def test_what_all_say_is_joined(pair: Pair) -> None:
    assert await pair.fleet.ready()
    assert pair.fleet.is_local()
    assert pair.fleet.transport_word == "system"
    assert pair.fleet.transport_info.startswith("left: system shared memory")
    assert await pair.fleet.repository_index() == frozenset({("echo", "1", "READY")})
    assert len(await pair.fleet.region_status()) == 2
    pair.grpc[LEFT].is_up = pair.grpc[RIGHT].is_up = False
    assert await pair.fleet.repository_index() is None
    assert not await pair.fleet.ready()


@pytest.mark.parametrize(
    ("left", "right", "oldest"),
    [("2.51.0", "2.9.0", "2.9.0"), ("2.51.0", "2.60.1", "2.51.0"), ("2.51.0", "", "")],
)
async def test_the_oldest_version_counts(pair: Pair, left: str, right: str, oldest: str) -> None:
    pair.fleet.backends[LEFT].version, pair.fleet.backends[RIGHT].version = left, right
    assert pair.fleet.version == oldest


async def test_counts_of_servers_add_up_and_a_mistake_is_nobodys_absence(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def counts() -> dict[tuple[str, str], tuple[int, int]]:
        return {("m", "1"): (3, 1)}

    for backend in pair.fleet.backends.values():
        monkeypatch.setattr(backend, "request_counts", counts)
    assert await pair.fleet.request_counts() == {("m", "1"): (6, 2)}

    async def wrong() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pair.fleet.backends[LEFT], "request_counts", wrong)
    with pytest.raises(ZeroDivisionError):
        await pair.fleet.request_counts()


# -- what a server that comes back is told ---------------------------------------------------------


async def test_closing_all_regions_forgets_those_of_its_kind() -> None:
    held = Registrations()
    asked: list[str] = []

    async def replay(server: str) -> None:
        asked.append(server)

    held.keep("system", "a", replay)
    held.keep("cuda", "b", replay)
    held.drop("system", "")
    await held.replay(LEFT)
    assert (len(held), asked) == (1, [LEFT])


async def test_regions_remembered_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REGISTRATIONS_MAX", 2)
    held = Registrations()

    async def replay(_: str) -> None: ...

    for number in range(4):
        held.keep("system", str(number), replay)
    assert len(held) == 2

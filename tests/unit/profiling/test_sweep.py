"""What is measured, in which sizes, and what is left out with its reason. Time is the test's."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.profiling.profiles import SHA
from tritonsched.backend.batch_call import BatchCall, BatchDone, BatchReply
from tritonsched.backend.catalogue import ModelInfo, TensorInfo
from tritonsched.backend.control import Index
from tritonsched.backend.embedded_env import PROOF_MODEL
from tritonsched.config.profile_file import MODELS_MAX
from tritonsched.errors import BackendError, TritonschedError
from tritonsched.profiling.stable import RUNS_MIN, WARM_RUNS
from tritonsched.profiling.sweep import (
    Sweep,
    Sweeper,
    Wish,
    ready_models,
    rows_of,
    shapes_of,
    told,
)
from tritonsched.tensors import GrpcReply, InferCall, RawReply

MS = 1_000_000
RTT_NS = 300_000


def info(name: str, rows_max: int = 8, **fields: Any) -> ModelInfo:
    tensors = {"A": TensorInfo("A", "FP32", (2,))}
    return ModelInfo(
        name, "", rows_max, fields.pop("inputs", tensors), {"B": TensorInfo("B", "FP32", (1,))},
        ("gpu:0",), config_sha256=SHA, **fields,
    )  # fmt: skip


class Played:
    """A Triton on the test's clock: a batch takes 5 ms + 1 ms a row, a lone call 7 ms.

    error: what models called `broken` answer. sent: (model, rows, shape) of each batch.
    """

    def __init__(self, *infos: ModelInfo) -> None:
        self.infos = {each.name: each for each in infos}
        self.now = 0
        self.sent: list[tuple[str, int, tuple[int, ...]]] = []
        self.forwarded: list[InferCall] = []
        self.released = 0
        self.index: Index | None = frozenset((name, "1", "READY") for name in self.infos)

    def clock(self) -> int:
        return self.now

    async def repository_index(self) -> Index | None:
        return self.index

    async def model_info(self, model: str, version: str) -> ModelInfo | None:
        return self.infos.get(model)

    def send(self, call: BatchCall, done: BatchDone) -> None:
        (tensor,) = call.inputs
        self.sent.append((call.model, call.rows, tensor.shape))
        outcome: BatchReply | TritonschedError = BatchReply(call.model, "1", (), self.release)
        if call.model == "broken":
            outcome = BackendError("CUDA out of memory")

        def answer() -> None:
            self.now += RTT_NS + 5 * MS + call.rows * MS
            done(outcome)

        asyncio.get_running_loop().call_soon(answer)

    def release(self) -> None:
        self.released += 1

    async def forward(self, call: InferCall) -> RawReply:
        self.forwarded.append(call)
        self.now += RTT_NS + 7 * MS
        if call.model == "broken-lone":
            return GrpcReply("INTERNAL", "no such step", b"")
        return GrpcReply("OK", "", b"")

    async def ready(self) -> bool:
        return True

    async def close(self) -> None: ...


class Heard:
    """A bar that notes what it was told."""

    def __init__(self) -> None:
        self.points = 0
        self.done = 0
        self.shown: set[tuple[str, int]] = set()

    def begin(self, points: int) -> None:
        self.points = points

    def show(self, model: str, rows: int, runs: int) -> None:
        self.shown.add((model, rows))

    def advance(self, points: int) -> None:
        self.done += points


async def swept(server: Played, wish: Wish | None = None, bar: Heard | None = None) -> Sweep:
    sweeper = Sweeper(
        server, wish or Wish(), clock=server.clock, rtt_ns=RTT_NS,
        files={"m": SHA}, bar=bar or Heard(),
    )  # fmt: skip
    return await sweeper.run(dict.fromkeys(server.infos, "3"))


async def test_every_size_of_a_model_is_measured_without_the_round_trip() -> None:
    server, bar = Played(info("m")), Heard()
    made = (await swept(server, bar=bar)).models["m"]
    assert {point.rows: point.p50_ms for point in made.points} == {1: 6, 2: 7, 4: 9, 8: 13}
    assert {point.runs for point in made.points} == {RUNS_MIN}
    assert (made.version, made.files_sha256, made.config_sha256) == ("3", SHA, SHA)
    assert server.released == len(server.sent) == 4 * (RUNS_MIN + WARM_RUNS)
    assert {shape for _, rows, shape in server.sent if rows == 4} == {(4, 2)}
    assert (bar.points, bar.done) == (4, 4)
    assert bar.shown == {("m", rows) for rows in (1, 2, 4, 8)}


async def test_what_cannot_be_merged_is_measured_as_it_is_forwarded() -> None:
    server = Played(info("whole", 0, lone_reason="no-batching"))
    made = await swept(server)
    assert [(point.rows, point.p50_ms) for point in made.models["whole"].points] == [(1, 7.0)]
    assert not server.sent
    assert made.models["whole"].files_sha256 is None


async def test_models_with_an_order_are_skipped_and_told() -> None:
    server = Played(
        info("s", lone_reason="sequence"),
        info("d", lone_reason="decoupled", is_decoupled=True),
        info("sd", lone_reason="sequence", is_decoupled=True),
    )
    made = await swept(server)
    assert list(told(made)) == [
        "s: skipped: a sequence model has no execution time by rows",
        "d: skipped: a decoupled model has no execution time by rows",
        "sd: skipped: a sequence model has no execution time by rows",
    ]
    assert not made.models
    assert not made.failed


async def test_a_model_that_fails_is_told_and_the_others_are_measured() -> None:
    variable = {"A": TensorInfo("A", "FP32", (-1, 3))}
    server = Played(
        info("broken"),
        info("broken-lone", 0, lone_reason="ensemble"),
        info("variable", inputs=variable),
        info("m", 1),
    )
    made = await swept(server)
    assert list(made.models) == ["m"]
    assert list(told(made)) == [
        "broken: not measured: CUDA out of memory",
        "broken-lone: not measured: no such step",
        "variable: not measured: input 'A' has dimensions [-1, 3]; name them with --shape",
    ]


async def test_a_model_unloaded_meanwhile_is_told() -> None:
    server = Played(info("m", 1))
    sweeper = Sweeper(server, Wish(), clock=server.clock, rtt_ns=0, files={}, bar=Heard())
    made = await sweeper.run({"m": "1", "gone": "1"})
    assert made.failed == {"gone": "Triton does not serve it any more"}
    assert list(made.models) == ["m"]


async def test_a_wished_shape_is_sent() -> None:
    server = Played(info("m", 1, inputs={"A": TensorInfo("A", "FP32", (-1,))}))
    await swept(server, Wish(shapes={"m/A": (5,), "A": (9,), "other/A": (7,)}))
    assert {shape for _, _, shape in server.sent} == {(1, 5)}


def test_a_models_own_shape_goes_before_the_general_one() -> None:
    shapes = {"A": (1,), "m/A": (2,), "n/A": (3,)}
    assert shapes_of("m", shapes)["A"] == (2,)
    assert shapes_of("x", shapes)["A"] == (1,)


@pytest.mark.parametrize(
    ("rows_max", "wished", "rows"),
    [
        (0, (), [1]),
        (1, (), [1]),
        (6, (), [1, 2, 4, 6]),
        (8, (), [1, 2, 4, 8]),
        (8, (4, 2, 2, 16), [2, 4]),
        (8, (16,), [1, 2, 4, 8]),
        (65_536, (), [1 << k for k in range(11)] + [65_536]),
    ],
)
def test_sizes_are_powers_of_two_and_the_largest_or_those_wished(
    rows_max: int, wished: tuple[int, ...], rows: list[int]
) -> None:
    assert rows_of(info("m", rows_max), wished) == rows


async def test_the_newest_ready_version_of_each_model_is_taken() -> None:
    server = Played()
    server.index = frozenset(
        {("b", "9", "READY"), ("b", "10", "READY"), ("a", "1", "READY"), ("c", "", "UNAVAILABLE")}
    )
    assert await ready_models(server, ()) == {"a": "1", "b": "10"}
    server.index |= {(PROOF_MODEL, "1", "READY")}
    assert PROOF_MODEL not in await ready_models(server, ())
    assert await ready_models(server, ("b",)) == {"b": "10"}


def wide(server: Played) -> None:
    server.index = frozenset((f"m{k}", "1", "READY") for k in range(MODELS_MAX + 1))


def silent(server: Played) -> None:
    server.index = None


@pytest.mark.parametrize(
    ("change", "wished", "words"),
    [
        (lambda _: None, ("x", "m"), "no ready model x; it has: m"),
        (silent, (), "does not tell its models"),
        (wide, (), f"name at most {MODELS_MAX} with --models"),
    ],
)
async def test_models_that_are_not_there_are_told_in_words(
    change: Callable[[Played], None], wished: tuple[str, ...], words: str
) -> None:
    server = Played(info("m"))
    change(server)
    with pytest.raises(BackendError, match=words):
        await ready_models(server, wished)

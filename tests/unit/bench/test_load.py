"""The open loop on virtual time: no answer delays a send, no lag of our own is hidden."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.virtual_loop import VirtualLoop, run_virtual
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.bench.load import START_NS, BenchOptions, OpenLoop, run
from tritonsched.bench.payload import Inputs, Wording
from tritonsched.bench.plan import DeadlineAs, LoadClass, Shot
from tritonsched.bench.report import table
from tritonsched.proxy.timer import LoopTimer
from tritonsched.tensors import Wire

MS = 1_000_000
TIGHT = LoadClass("tight", 0.5, 10.0)
FREE = LoadClass("free", 0.5, None)
Answer = Callable[[VirtualLoop, int], Awaitable[str]]


class ScriptedClient:
    """A target whose every answer is scripted; it notes when each request was sent."""

    def __init__(self, loop: VirtualLoop, answer: Answer) -> None:
        self._loop = loop
        self._answer = answer
        self.sent_ns: list[int] = []

    async def model(self, name: str) -> ModelInfo:
        return ModelInfo(name, "", 0, {}, {}, ("d",))

    def prepare(
        self, model: str, classes: tuple[LoadClass, ...], payloads: list[Inputs], wording: Wording
    ) -> None: ...

    async def send(self, load_class: int, payload: int) -> str:
        self.sent_ns.append(self._loop.now_ns() - START_NS)
        return await self._answer(self._loop, len(self.sent_ns) - 1)

    async def close(self) -> None: ...


def every_ms(count: int) -> list[Shot]:
    """A request a millisecond, classes in turn."""
    return [Shot(n * MS, n % 2, 0) for n in range(1, count + 1)]


def options(**fields: Any) -> BenchOptions:
    given: dict[str, Any] = {
        "rate": 1000.0, "duration_s": 0.1, "warmup_s": 0.0, "classes": (TIGHT, FREE),
    }  # fmt: skip
    return BenchOptions("t:1", Wire.GRPC, "m", **(given | fields))


def ran(
    answer: Answer, shots: list[Shot], chosen: BenchOptions | None = None
) -> tuple[dict[str, Any], list[int]]:
    """The result of one run on virtual time, and when each request was sent."""

    async def main(loop: VirtualLoop) -> tuple[dict[str, Any], list[int]]:
        client = ScriptedClient(loop, answer)
        made = OpenLoop(client, chosen or options(), shots, clock=loop.now_ns, timer=LoopTimer)
        await made.finish()
        return made.result(0.0), client.sent_ns

    return run_virtual(main)


async def at_once(loop: VirtualLoop, number: int) -> str:
    return "ok"


async def slow(loop: VirtualLoop, number: int) -> str:
    """One server, 20 ms a request, one after the other: twenty times too slow for `every_ms`."""
    await loop.until(START_NS + (number + 1) * 20 * MS)
    return "ok"


def test_every_request_leaves_at_its_time_whatever_the_answers_do() -> None:
    """Open loop: a target that is twenty times too slow gets the very same arrivals."""
    shots = every_ms(50)
    _, fast = ran(at_once, shots)
    _, overloaded = ran(slow, shots)
    assert fast == overloaded == [shot.at_ns for shot in shots]


def test_latency_counts_from_the_schedule() -> None:
    """A queue that grows at the target is seen in full, not one answer time a request."""
    result, _ = ran(slow, every_ms(50))
    # request n is due at n ms and answered at 20·n ms
    assert result["classes"]["free"]["latency_ms"]["p99"] == 49 * 19.0
    assert result["classes"]["tight"]["served"] == 0
    assert result["classes"]["tight"]["late"] == 25


def test_a_stall_of_the_generator_is_charged_to_the_requests_it_delayed_and_told() -> None:
    """No coordinated omission: what could not be sent in time has waited all the same."""

    async def stalls(loop: VirtualLoop, number: int) -> str:
        if number == 9:
            loop._jumping.now_ns += 30 * MS  # the process did not run
        return "ok"

    result, sent_ns = ran(stalls, every_ms(50))
    assert len(sent_ns) == 50
    assert sent_ns[10:40] == [40 * MS] * 30  # all that fell due meanwhile, at once
    assert result["send_lag_ms"]["p99"] == 29.0
    # the stalling request itself and the 19 that waited longer than 10 ms of it
    late = result["classes"]["tight"]["late"]
    assert late == sum(40 - n > 10 for n in range(10, 41) if n % 2 == 0)


def test_over_the_bound_in_flight_requests_are_counted_not_sent() -> None:
    result, sent_ns = ran(slow, every_ms(50), options(in_flight_max=3))
    counts = result["classes"].values()
    assert sum(count["unsent"] for count in counts) == 50 - len(sent_ns) > 0
    assert sum(count["sent"] + count["unsent"] for count in counts) == 50
    assert result["offered_per_s"] == 500.0


def test_what_is_out_at_the_end_of_the_drain_is_counted_unanswered() -> None:
    """The drain of 50 ms starts at 50 ms: five of the answers at 20, 40, … ms are seen."""
    result, _ = ran(slow, every_ms(50), options(drain_s=0.05))
    counts = result["classes"].values()
    assert sum(count["unanswered"] for count in counts) == 45
    for count in counts:
        ended = count["served"] + count["late"]
        assert count["sent"] == ended + count["unanswered"]


def test_the_warm_up_is_sent_but_not_counted() -> None:
    result, sent_ns = ran(at_once, every_ms(50), options(warmup_s=0.02))
    assert len(sent_ns) == 50
    assert sum(count["sent"] for count in result["classes"].values()) == 31  # from 20 ms on


def test_refusals_and_failures_are_told_by_their_reasons() -> None:
    async def answers(loop: VirtualLoop, number: int) -> str:
        return ("queue-full", "internal", "triton-timeout", "ok")[number % 4]

    result, _ = ran(answers, every_ms(40))
    free, tight = result["classes"]["free"], result["classes"]["tight"]
    assert free["refused"] == {"queue-full": 10, "triton-timeout": 10}
    assert tight["failed"] == {"internal": 10}
    assert tight["served"] == 10
    assert result["goodput_per_s"] == 100.0
    assert table(result).row_count == 2


def test_the_keys_of_the_result_are_a_promise() -> None:
    """Scripts read this JSON: a key that goes or changes its meaning is a change of interface."""
    result, _ = ran(at_once, every_ms(4))
    assert list(result) == [
        "config", "machine", "offered_per_s", "goodput_per_s", "in_time_share", "send_lag_ms",
        "client_cpu_us_per_request", "classes",
    ]  # fmt: skip
    assert list(result["classes"]["tight"]) == [
        "deadline_ms", "sent", "served", "late", "refused", "failed", "unsent", "unanswered",
        "goodput_per_s", "latency_ms",
    ]  # fmt: skip
    assert list(result["machine"]) == [
        "python", "system", "processors", "tritonsched", "grpcio", "aiohttp",
    ]  # fmt: skip
    assert list(result["classes"]["tight"]["latency_ms"]) == ["p50", "p90", "p99"]
    assert result["config"]["seed"] == 1
    assert result["config"]["classes"][0]["name"] == "tight"


def test_a_run_of_nothing_has_no_shares() -> None:
    result, _ = ran(at_once, [])
    assert result["in_time_share"] is None
    assert result["send_lag_ms"] == {"p50": None, "p99": None}
    assert table(result).row_count == 2


async def test_a_call_deadline_over_http_is_refused_in_words() -> None:
    """Before anything is asked of the target."""
    wrong = BenchOptions("t:1", Wire.HTTP, "m", 1.0, 1.0, deadline_as=DeadlineAs.GRPC)
    with pytest.raises(ValueError, match="use header"):
        await run(wrong)

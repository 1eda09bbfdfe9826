"""Reloads: swapped whole, refused whole, told; and the requests never notice.

On virtual time, with the proxy's own stage.
"""

import asyncio
import random
from collections.abc import Callable

from tests.unit.proxy.scene import ends, virtual
from tests.unit.proxy.test_service import Door
from tests.virtual_loop import VirtualLoop
from tritonsched.config.load import parse_policy
from tritonsched.config.schema import PolicyFile
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import DEFAULT_POLICY
from tritonsched.core.request import Outcome
from tritonsched.errors import ConfigError
from tritonsched.proxy.intake import Intake
from tritonsched.proxy.reload import (
    APPLIED,
    REFUSED,
    ROLLED_BACK,
    LivePolicy,
    Reload,
    Reloader,
    changes,
    in_words,
)

POLICY = """\
classes:
  gold: {deadline_ms: 30000, weight: 2.0}
  silver:
    deadline_ms: 60000
default_class: silver
models:
  echo: {default_class: gold}
scheduler: {policy: edf, window_ms: 1.5, rows_max: 16}
limits: {queue_requests_max: 1000, tensor_mib_max: 4}
"""
MUTATIONS = 1000


class Stage:
    """A Reloader on a file that a test writes. told: how each reload ended."""

    def __init__(
        self,
        text: str = POLICY,
        adopt: Callable[[PolicyFile], None] = lambda _: None,
    ) -> None:
        self.text = text
        self.told: list[Reload] = []
        self.ledger = Ledger()
        self.guard = asyncio.Event()
        self.waited: list[float] = []
        self.reloader = Reloader(
            parse_policy(text),
            read=self._read,
            adopt=adopt,
            ledger=self.ledger,
            told=self.told.append,
            pause=self._pause,
        )

    async def _read(self) -> PolicyFile:
        return parse_policy(self.text, "p.yaml")

    async def _pause(self, seconds: float) -> None:
        self.waited.append(seconds)
        await self.guard.wait()

    async def write(self, text: str) -> Reload:
        self.text = text
        return await self.reloader.reload()

    def count(self, *, served: int = 0, late: int = 0) -> None:
        self.ledger.outcomes["gold", Outcome.SERVED] += served
        self.ledger.outcomes["gold", Outcome.LATE] += late

    async def guard_ends(self) -> None:
        task = self.reloader._guard
        assert task is not None
        self.guard.set()
        await task


def live(door: Door) -> LivePolicy:
    intake: Intake = door.proxy._intake
    return LivePolicy(door.scheduler, door.driver, intake, door.proxy, "lite")


def mutated(text: str, chance: random.Random) -> str:
    """One to three small accidents: a character lost, doubled or replaced, a line lost or moved."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text))
        lines = text.splitlines(keepends=True)
        row = chance.randrange(len(lines))
        odd = chance.choice("\t{}[]:,-&*!|>'\"%@`\x00é0x\n #")
        text = chance.choice(
            [
                text[:at] + text[at + 1 :],
                text[:at] + text[at] + text[at:],
                text[:at] + odd + text[at + 1 :],
                text[:at] + odd + text[at:],
                "".join(lines[:row] + lines[row + 1 :]) or "[",
                "".join([*lines[:row], "  ", *lines[row:]]),
            ]
        )
    return text


@virtual
async def test_a_thousand_mutations_under_load_lose_no_request_and_keep_the_old_policy(
    loop: VirtualLoop,
) -> None:
    door = Door(loop)
    living = live(door)
    stage = Stage(adopt=lambda policy: living.adopt(policy, loop.now_ns()))
    chance = random.Random(5)
    asked, refused = [], 0
    for _ in range(MUTATIONS):
        asked.append(door.ask())
        before = stage.reloader.policy
        made = await stage.write(mutated(POLICY, chance))
        if made.outcome == REFUSED:
            refused += 1
            assert stage.reloader.policy is before
            assert stage.reloader.last_error == made.error
            assert made.faults
            assert all(fault["line"] >= 1 and fault["column"] >= 1 for fault in made.faults)
        if len(asked) % 20 == 0:
            await ends(*asked[-20:])
    for answer in await ends(*asked):
        assert not isinstance(answer, BaseException)
    assert MUTATIONS // 2 < refused < MUTATIONS
    assert stage.reloader.last.generation == 1 + MUTATIONS - refused


@virtual
async def test_a_reload_changes_classes_rule_window_and_bounds_of_what_comes_next(
    loop: VirtualLoop,
) -> None:
    door = Door(loop)
    living = live(door)
    early = door.ask()
    await door.settle()
    living.adopt(parse_policy(POLICY), loop.now_ns())
    tuning = door.scheduler.tuning
    assert (tuning.window_ns, tuning.rows_cap, tuning.queue_requests_max) == (1_500_000, 16, 1000)
    assert repr(door.scheduler).startswith("<scheduler edf")
    living.adopt(parse_policy("default_class: default\n"), loop.now_ns())
    assert repr(door.scheduler).startswith(f"<scheduler {DEFAULT_POLICY}")
    late = door.ask()
    assert not [a for a in await ends(early, late) if isinstance(a, BaseException)]


async def test_a_refused_file_leaves_everything_and_says_where() -> None:
    adopted: list[PolicyFile] = []
    stage = Stage(adopt=adopted.append)
    made = await stage.write("clases: {}\n")
    assert (made.outcome, made.generation, adopted) == (REFUSED, 1, [])
    assert made.faults[0]["column"] == 1
    assert in_words(made).startswith("policy refused, the old one stays: p.yaml:1:1: clases: ")
    good = await stage.write(POLICY)
    assert (good.outcome, good.generation, stage.reloader.last_error) == (APPLIED, 2, "")


async def test_a_fault_without_a_place_is_told_too() -> None:
    stage = Stage()

    async def gone() -> PolicyFile:
        raise ConfigError("p.yaml: cannot be read: No such file or directory")

    stage.reloader._read = gone
    made = await stage.reloader.reload()
    assert (made.outcome, made.faults) == (REFUSED, ())
    assert "cannot be read" in stage.reloader.last_error


async def test_the_difference_is_told_and_what_needs_a_restart_until_there_was_one() -> None:
    stage = Stage()
    made = await stage.write(
        POLICY.replace("30000", "40").replace("weight: 2.0", "weight: 3.0")
        + "transport: {mode: inline}\n"
    )
    assert made.changes == (
        "classes.gold.deadline_ms 30000.0→40.0",
        "classes.gold.weight 2.0→3.0",
        "transport.mode auto→inline",
    )
    assert made.restart == ("transport.mode auto→inline",)
    again = await stage.write(stage.text.replace("3.0", "4.0"))
    assert again.restart == ("transport.mode auto→inline",)
    assert in_words(again) == (
        "policy 3 applied: classes.gold.weight 3.0→4.0; "
        "only after a restart: transport.mode auto→inline"
    )


def test_classes_that_come_and_go_are_told_and_long_lists_are_cut() -> None:
    old = parse_policy("classes: {a: {weight: 2}}\n")
    new = parse_policy("classes: {b: {weight: 3}}\n")
    assert "classes.a.weight 2.0→absent" in changes(old, new)
    assert "classes.b.weight absent→3.0" in changes(old, new)
    text = in_words(Reload(APPLIED, 2, changes=tuple(f"k{n} 1→2" for n in range(23))))
    assert text.endswith("k19 1→2; and 3 more")


GUARDED = POLICY + "reload: {guard_s: 30}\n"


async def test_twice_the_misses_bring_the_policy_before_back() -> None:
    adopted: list[PolicyFile] = []
    stage = Stage(adopt=adopted.append)
    before = stage.reloader.policy
    stage.count(served=95, late=5)
    await stage.write(GUARDED.replace("30000", "1"))
    stage.count(served=80, late=20)
    await stage.guard_ends()
    assert stage.waited == [30.0]
    assert [made.outcome for made in stage.told] == [APPLIED, ROLLED_BACK]
    assert adopted[-1] is stage.reloader.policy is before
    assert "20.0% of 100 requests were not served in time" in stage.reloader.last_error


async def test_a_policy_that_is_not_much_worse_or_hardly_used_stays() -> None:
    for served, late in ((92, 8), (0, 49)):
        stage = Stage()
        stage.count(served=95, late=5)
        await stage.write(GUARDED)
        stage.count(served=served, late=late)
        await stage.guard_ends()
        assert [made.outcome for made in stage.told] == [APPLIED]


async def test_the_next_reload_ends_the_probation_of_the_one_before() -> None:
    stage = Stage()
    await stage.write(GUARDED)
    first = stage.reloader._guard
    await stage.write(POLICY)
    assert first is not None
    await asyncio.wait({first})
    assert first.cancelled()
    assert stage.reloader._guard is None

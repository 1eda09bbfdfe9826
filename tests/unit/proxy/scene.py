"""A driver on virtual time with a scripted backend: the stage of the live driver's tests."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tests.helpers import EXACT, MS, exact, request
from tests.unit.proxy.calls import ECHO, call, tensor
from tests.virtual_loop import VirtualLoop, run_virtual
from tritonsched.backend.scripted import ScriptedBackend, Step, ok
from tritonsched.core.batch import Decision, summary
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import NEVER_NS
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant
from tritonsched.proxy.driver import Driver
from tritonsched.proxy.held import Held
from tritonsched.proxy.job import Job
from tritonsched.proxy.reserving import Reservations
from tritonsched.proxy.timer import LoopTimer
from tritonsched.tensors import Answer, MergedReply, Tensor

DEVICE = ECHO.devices[0]
EXEC_NS = 5 * MS  # whatever the rows: what the profile promises and `ok(EXEC_NS)` takes
Story = Callable[[VirtualLoop], Coroutine[Any, Any, None]]


def virtual(story: Story) -> Callable[[], None]:
    """The story as a test on virtual time. A task that ends badly unseen fails it."""

    async def watched(loop: VirtualLoop) -> None:
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: told.append(context))
        await story(loop)
        gc.collect()
        assert told == [], told

    def test() -> None:
        run_virtual(watched)

    test.__doc__ = story.__doc__
    return test


class RecordedTimer(LoopTimer):
    """Fires `late_ns` after the time it is armed for; arms: every call of `arm`."""

    def __init__(self, loop: VirtualLoop, fired: Callable[[], None], late_ns: int) -> None:
        super().__init__(loop, fired)
        self.fired = fired
        self.arms: list[int | None] = []
        self._late_ns = late_ns

    def arm(self, at_ns: int | None) -> None:
        self.arms.append(at_ns)
        super().arm(None if at_ns is None else at_ns + self._late_ns)


class Scene:
    """A driver, the script behind it, and everything it tells."""

    def __init__(
        self,
        loop: VirtualLoop,
        *steps: Step,
        tuning: Tuning = EXACT,
        late_ns: int = 0,
        kind: type[ScriptedBackend] = ScriptedBackend,
        resend_failed: bool = True,
        resend_lost: bool = True,
        **more: Any,
    ) -> None:
        self.loop = loop
        self.ledger = Ledger()
        self.log: list[tuple[Any, ...]] = []
        self.replies: list[int] = []
        self.sends: list[int] = []
        self.lost: list[str] = []
        self.taken_apart: list[tuple[str, str]] = []
        self.backend = kind(
            steps, models={"echo": ECHO}, sleeper=loop.pause, afterwards=ok(EXEC_NS), **more
        )
        self.scheduler = Scheduler(POLICIES["lite"](), tuning=tuning, observers=(self.ledger,))
        self.held = Held()
        self.driver = Driver(
            self.scheduler,
            self.backend,
            clock=loop.now_ns,
            held=self.held,
            make_timer=lambda fired: self._timer(fired, late_ns),
            on_decisions=self._decided,
            on_reply=self.replies.extend,
            on_send=self.sends.append,
            on_lost=self._lost,
            on_taken_apart=lambda batch, e: self.taken_apart.append((batch.model, str(e))),
            on_reserved=lambda said: self.reservations.decided(said),  # noqa: PLW0108  # made below
            resend_failed=resend_failed,
            resend_lost=resend_lost,
        )
        self.reservations = Reservations(
            reserve=self.driver.reserve, release=self.driver.release, clock=loop.now_ns
        )
        self.driver.set_variant(Variant("echo", 8, ECHO.devices))
        self.scheduler.set_profile("echo", DEVICE, exact(dict.fromkeys(range(1, 9), EXEC_NS)))
        self._number = 0

    def _timer(self, fired: Callable[[], None], late_ns: int) -> RecordedTimer:
        self.timer = RecordedTimer(self.loop, fired, late_ns)
        return self.timer

    def _decided(self, now: int, decisions: Sequence[Decision]) -> None:
        self.log += [(now, *summary(decision)[:1]) for decision in decisions]

    def _lost(self, server: str) -> None:
        self.lost.append(server)
        if server:  # one of several; the only one is the tests' own to tell
            self.driver.set_server(ServerState.AWAY, server)

    def job(
        self,
        made: Tensor | None = None,
        *,
        deadline: int = NEVER_NS,
        lone: str = "",
        clipped: bool = False,
        in_sequence: bool = False,
        apart: bool = False,
        **fields: Any,
    ) -> Job:
        """A job that arrives now, with its own id."""
        self._number += 1
        data = made or tensor()
        asked = request(
            self._number,
            arrival=self.loop.now_ns(),
            deadline=deadline,
            rows=data.shape[0],
            model="echo",
            signature=0 if lone else 1,
            alone=bool(lone) and not apart,
        )
        asked.apart = apart
        made_call = call(data, **fields)
        return Job(made_call, ECHO, asked, lone=lone, clipped=clipped, in_sequence=in_sequence)

    def send(self, made: Tensor | None = None, **fields: Any) -> asyncio.Task[Answer]:
        return asyncio.ensure_future(self.driver.infer(self.job(made, **fields)))

    async def settle(self) -> None:
        """All that can happen at this moment has happened."""
        await self.loop.pause(1)

    def outcomes(self) -> dict[str, int]:
        return {kind.value: count for (_, kind), count in self.ledger.outcomes.items()}


def filled(byte: int, rows: int = 1, name: str = "INPUT") -> Tensor:
    return Tensor(name, "UINT8", (rows, 2), bytes([byte]) * 2 * rows)


def data(answer: Answer) -> bytes:
    assert isinstance(answer, MergedReply)
    (out,) = answer.outputs
    assert (out.name, out.shape) == ("OUTPUT", (len(out.data) // 2, 2))
    return bytes(out.data)


async def ends(*tasks: asyncio.Task[Answer]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)

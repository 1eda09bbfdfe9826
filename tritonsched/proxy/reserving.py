"""Periodic streams that clients reserve. Rule: the core decides; here are names and who waits.

    ask -> driver.reserve -> (core: Proposal, in a thread) -> Grant or Refuse -> decided -> answer

A frame names its reservation (`x-tritonsched-reservation`); what the core then makes of it, it
decides by the frame's own time and form. A frame that names a reservation which is over is best
effort, like any other request.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from tritonsched.core.batch import Grant, Refuse
from tritonsched.core.desk import ASKED_MAX
from tritonsched.core.request import Tenant
from tritonsched.core.reservation import RefusalReason, Reservation
from tritonsched.core.streams import STREAMS_MAX

JITTER_NS = 2_000_000  # of a client that says nothing of it
ANSWER_S_MAX = 30.0  # then it is refused as `busy`
IDS_MAX = STREAMS_MAX + ASKED_MAX  # reservations known here, those that wait for their answer too


class State(StrEnum):
    """What a reservation is worth now; public."""

    GRANTED = "granted"
    DEGRADED = "degraded"  # it no longer fits: its frames are best effort


@dataclass(frozen=True, slots=True)
class Entry:
    """A reservation as its client knows it. device: that keeps it."""

    reservation: Reservation
    device: str
    state: State = State.GRANTED

    @property
    def name(self) -> str:
        return str(self.reservation.id)


class Heard(Protocol):
    """Hears what becomes of reservations (the recorder). now: monotonic ns."""

    def on_reserve(self, wanted: Reservation, now: int) -> None: ...

    def on_reserved(self, said: Grant | Refuse, now: int) -> None: ...

    def on_release(self, number: int, now: int) -> None: ...


class Reservations:
    """All that are known. reserve, release: tell the core. clock, later `now`: monotonic ns.

    heard: who hears of all of it. told: hears in words of a stream that is no longer kept.
    """

    def __init__(
        self,
        *,
        reserve: Callable[[Reservation], None],
        release: Callable[[int], None],
        clock: Callable[[], int],
        heard: Iterable[Heard] = (),
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._reserve = reserve
        self._tell_released = release
        self._heard = tuple(heard)
        self._told = told
        self.now = clock
        self._next_id = 0
        self._entries: dict[str, Entry] = {}
        self._asked: dict[int, asyncio.Future[Entry | Refuse]] = {}
        self._whose: dict[int, str] = {}  # of those and of the entries
        self.tenant_of: Callable[[str | None], Tenant] = lambda _: Tenant("default")
        self._ends: dict[str, asyncio.TimerHandle] = {}

    async def ask(self, wanted: Reservation) -> Entry | Refuse:
        """Ask for a stream; its id is given here. If the caller leaves, it is not kept."""
        self._next_id += 1
        wanted = replace(wanted, id=self._next_id)
        if len(self._entries) + len(self._asked) >= IDS_MAX:
            return Refuse(wanted, RefusalReason.TOO_MANY)
        tenant = self.tenant_of(wanted.tenant)
        if self._has_all(tenant):
            return Refuse(wanted, RefusalReason.TENANT_TOO_MANY)
        self._whose[wanted.id] = tenant.name
        answer: asyncio.Future[Entry | Refuse] = asyncio.get_running_loop().create_future()
        self._asked[wanted.id] = answer
        for who in self._heard:
            who.on_reserve(wanted, self.now())
        self._reserve(wanted)
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                return await answer
        except TimeoutError:
            self._forget(wanted.id)
            return Refuse(wanted, RefusalReason.BUSY)
        except asyncio.CancelledError:
            self._forget(wanted.id)
            raise
        finally:
            self._asked.pop(wanted.id, None)
            if str(wanted.id) not in self._entries:
                self._whose.pop(wanted.id, None)

    def _has_all(self, tenant: Tenant) -> bool:
        """It has as many streams as it may, those that wait for their answer included."""
        bound = tenant.reservations_max
        return bound is not None and [*self._whose.values()].count(tenant.name) >= bound

    def decided(self, decision: Grant | Refuse) -> None:
        """The core's answer, or its change of mind."""
        number = decision.reservation.id
        answer = self._asked.get(number)
        for who in self._heard:
            who.on_reserved(decision, self.now())
        if isinstance(decision, Refuse):
            if entry := self._entries.get(str(number)):
                self._entries[entry.name] = replace(entry, state=State.DEGRADED)
                self._told(
                    f"reservation {number} of model '{entry.reservation.model}' is no longer kept "
                    f"({decision.reason.value}): its frames are best effort"
                )
            elif answer is not None and not answer.done():
                answer.set_result(decision)
            return
        if answer is None or answer.done():
            self._release(number)  # nobody waits for it any more
            return
        entry = Entry(decision.reservation, decision.device)
        self._entries[entry.name] = entry
        left_s = max(0, entry.reservation.end_ns - self.now()) / 1e9
        self._ends[entry.name] = answer.get_loop().call_later(left_s, self.release, entry.name)
        answer.set_result(entry)

    def of(self, name: str | None) -> Reservation | None:
        """The granted stream that a frame names."""
        entry = self._entries.get(name) if name else None
        return None if entry is None or entry.state is not State.GRANTED else entry.reservation

    def entry(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def listed(self, model: str = "") -> tuple[Entry, ...]:
        """Oldest first; of one model, or all."""
        return tuple(e for e in self._entries.values() if model in ("", e.reservation.model))

    def release(self, name: str) -> bool:
        """The stream ends; False if there is none of that name."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return False
        self._ends.pop(name).cancel()
        self._whose.pop(entry.reservation.id, None)
        self._release(entry.reservation.id)
        return True

    def close(self) -> None:
        """No timer is left."""
        for end in self._ends.values():
            end.cancel()
        self._ends.clear()

    def _release(self, number: int) -> None:
        for who in self._heard:
            who.on_release(number, self.now())
        self._tell_released(number)

    def _forget(self, number: int) -> None:
        if not self.release(str(number)):
            self._release(number)

"""Who may be connected, and who has to go. Rule: every connection is looked at once a second, a
slice at a time, and whatever it may hold or keep waiting for has a bound here.

A connection at the bound of their number takes the place of one that is idle; if none is, it is
refused. Between two looks nothing is asked, so a request costs nothing here. What a look is told is
the time, so that tests need not wait.
Sources: NGINX (`worker_connections`, `reset_timedout_connection`), Apache's mod_reqtimeout (a time
and a rate), Envoy's edge guide; RFC 9113 10.5.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

TICKS_PER_S = 10  # slices of a second's look at everybody, and more for a crowd:
TICKS_PER_S_MAX = 100  # a thousand connections at once made p99 four times as long
SLICE = 100  # connections of a slice, where that needs no more ticks
HEAD_NS = 10_000_000_000  # for a head, HTTP/2's preface or TLS's handshake: NGINX has 60 s
REQUEST_NS = 30_000_000_000  # for all of a request, and beyond it what comes at this rate:
REQUEST_BYTES_PER_S = 1024  # slower than any link, faster than a drip
UNREAD_NS = 60_000_000_000  # without reading so much of what was written, a client is gone:
UNREAD_BYTES_MIN = 16 * 1024
HOLDER_BYTES_MIN = 64 * 1024  # who holds less is not ended for what all hold together
IDLE_LOOKS_MAX = 64  # connections that are asked whether they are idle, for the sake of a new one
# Reasons, label values of `tritonsched_connections_ended_total`.
TOO_MANY = "connections-max"  # a new one was refused
GAVE_WAY = "gave-way"  # an idle one was closed for a new one
SLOW_HEAD = "slow-head"
SLOW_REQUEST = "slow-request"
SLOW_READER = "slow-reader"
HOLDS_MOST = "held-max"
TOO_LARGE = "too-large"  # a head, a body, or requests that wait
PROTOCOL = "protocol"  # it broke HTTP's rules
FLOOD = "flood"  # it kept them, and had us busy with nothing
TLS = "tls"  # no handshake, or not in time
REASONS = (
    TOO_MANY, GAVE_WAY, SLOW_HEAD, SLOW_REQUEST, SLOW_READER, HOLDS_MOST, TOO_LARGE, PROTOCOL,
    FLOOD, TLS,
)  # fmt: skip


class Guest(Protocol):
    """A connection, to the gate."""

    @property
    def is_idle(self) -> bool:
        """Nothing runs, and it is not being closed: it can be, without loss."""

    @property
    def held_bytes(self) -> int:
        """What it makes us keep: requests in part, answers not read."""

    def fault(self, now_ns: int) -> str:
        """Why it has to end now; empty if it need not."""

    def leave_for(self, reason: str) -> None:
        """Close, and say why where the protocol has words for it."""

    def close_when_idle(self) -> None:
        """Take nothing new, finish what runs, then close."""

    def abort(self) -> None:
        """Close now."""


@dataclass(frozen=True, slots=True)
class Limits:
    """connections_max: on one port. held_bytes_max: of all its connections together."""

    connections_max: int = 16_384
    held_bytes_max: int = 4 << 30


def _always() -> bool:
    return True


def _nobody(_reason: str) -> None:
    """Nobody counts."""


class Gate:
    """The connections of one port. ended: hears the reason for each that was ended or refused.
    has_room: whether there is any for one more, whatever its number here.

    none_left: set while there is none.
    """

    def __init__(
        self,
        limits: Limits = Limits(),  # frozen
        *,
        ended: Callable[[str], None] = _nobody,
        clock: Callable[[], int] = time.monotonic_ns,
        has_room: Callable[[], bool] = _always,
    ) -> None:
        self.limits = limits
        self._has_room = has_room
        self.ended = ended
        self.clock = clock
        self.none_left = asyncio.Event()
        self.none_left.set()
        self._all: dict[Guest, None] = {}  # those that came, or were looked at, longest ago first
        self._round: list[Guest] = []  # still to be looked at
        self._held_bytes = 0  # of those that were looked at in this round
        self._holders: list[tuple[int, Guest]] = []  # those of them that hold much
        self._ticking: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Guest]:
        return iter(tuple(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, guest: Guest) -> bool:
        """A connection is there; False: it has to be closed at once, and was counted."""
        is_full = len(self._all) >= self.limits.connections_max or not self._has_room()
        if is_full and not self._made_room():
            self.ended(TOO_MANY)
            return False
        self._all[guest] = None
        self.none_left.clear()
        if self._ticking is None:
            self._tick_later()
        return True

    def leave(self, guest: Guest) -> None:
        """A connection is gone. Does nothing for one that was not admitted."""
        self._all.pop(guest, None)
        if not self._all:
            self.none_left.set()

    def expel(self, guest: Guest, reason: str) -> None:
        """End a connection, and count it."""
        self.ended(reason)
        guest.leave_for(reason)

    def _made_room(self) -> bool:
        for _ in range(min(IDLE_LOOKS_MAX, len(self._all))):
            guest = next(iter(self._all))
            del self._all[guest]
            self._all[guest] = None  # asked last the next time
            if guest.is_idle:
                self.expel(guest, GAVE_WAY)
                return True
        return False

    # -- the look ---------------------------------------------------------------------------------

    @property
    def _ticks_per_s(self) -> int:
        return max(TICKS_PER_S, min(TICKS_PER_S_MAX, len(self._all) // SLICE))

    def _tick_later(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(1 / self._ticks_per_s, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        self.look(-(-len(self._all) // self._ticks_per_s))
        if self._all:
            self._tick_later()

    def look(self, count: int) -> None:
        """Look at so many of them; after all of them, at what they hold together."""
        if not self._round:
            self._round = list(self._all)
        now_ns = self.clock()
        for _ in range(min(count, len(self._round))):
            guest = self._round.pop()
            if guest in self._all:
                self._look_at(guest, now_ns)
        if not self._round:
            self._judge_sum()

    def look_at_all(self) -> None:
        """One whole round, from its beginning."""
        self._round, self._held_bytes, self._holders = [], 0, []
        self.look(len(self._all))

    def _look_at(self, guest: Guest, now_ns: int) -> None:
        reason = guest.fault(now_ns)
        if reason:
            self.expel(guest, reason)
            return
        held = guest.held_bytes
        self._held_bytes += held
        if held >= HOLDER_BYTES_MIN:
            self._holders.append((held, guest))

    def _judge_sum(self) -> None:
        """Those who hold most go first, until it is little enough."""
        too_much = self._held_bytes - self.limits.held_bytes_max
        holders = sorted(self._holders, key=lambda holder: holder[0])
        self._held_bytes, self._holders = 0, []
        while too_much > 0 and holders:
            held, guest = holders.pop()
            too_much -= held
            if guest in self._all:
                self.expel(guest, HOLDS_MOST)

    async def drain(self, grace_s: float) -> None:
        """Let all of them finish within the grace, then close them, and look no more."""
        for guest in self:
            guest.close_when_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.none_left.wait()
        for guest in self:
            guest.abort()
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None


def is_slow(began_ns: int, received_bytes: int, now_ns: int) -> bool:
    """A request that began then, and of which so much is here, takes too long."""
    allowed_ns = REQUEST_NS + received_bytes * 1_000_000_000 // REQUEST_BYTES_PER_S
    return now_ns - began_ns > allowed_ns


class Reading:
    """Whether somebody reads what we write: the unsent bytes have to become less."""

    __slots__ = ("_bytes", "_since_ns")

    def __init__(self) -> None:
        self._bytes = 0
        self._since_ns = 0

    def is_stuck(self, unsent_bytes: int, now_ns: int) -> bool:
        """unsent_bytes: now. Asked about once a second."""
        if not unsent_bytes or not self._bytes or unsent_bytes <= self._bytes - UNREAD_BYTES_MIN:
            self._bytes, self._since_ns = unsent_bytes, now_ns
            return False
        self._bytes = max(self._bytes, unsent_bytes)
        return now_ns - self._since_ns > UNREAD_NS

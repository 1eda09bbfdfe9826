"""What makes the frames that `/admin/events` sends. Rule: a look a second, always; a frame only for
those who listen, made in parts with a turn of the event loop between two of them.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import orjson

from tritonsched.core.ledger import Ledger
from tritonsched.frontend.admin_events import Audience
from tritonsched.proxy.frame import Facts, frame
from tritonsched.proxy.overview import Overview, Watched
from tritonsched.proxy.reload import Reloader

INTERVAL_S = 1.0

Pause = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is shown. why_not_ready: empty if the sidecar can serve. changes: of the tuning, in
    words, oldest first. notices: what an operator should read first.
    """

    overview: Overview
    scheduler: Watched
    ledger: Ledger
    reloader: Reloader
    why_not_ready: Callable[[], str]
    changes: Callable[[], Sequence[str]] = tuple
    notices: Callable[[], Sequence[str]] = tuple


class Show:
    """clock, wall_ns: nanoseconds, monotonic and of the day."""

    def __init__(self, seen: Seen, *, clock: Callable[[], int], wall_ns: Callable[[], int]) -> None:
        self.audience = Audience()
        self._seen = seen
        self._clock = clock
        self._wall_ns = wall_ns
        self._began_ns = clock()
        self._version = version("tritonsched")

    async def run(self, pause: Pause) -> None:
        """A turn a second, for ever; ends by being cancelled."""
        while True:
            await pause(INTERVAL_S)
            await self.turn(pause)

    async def turn(self, pause: Pause) -> None:
        """One second's work."""
        seen, now = self._seen, self._clock()
        seen.overview.is_watched = bool(len(self.audience))
        seen.overview.sample(seen.scheduler, seen.ledger, now)
        if not len(self.audience):
            return
        made = {}
        for name, part in frame(seen.overview, seen.scheduler, seen.ledger, self._facts(now), now):
            made[name] = part
            await pause(0.0)
        self.audience.give(orjson.dumps(made))

    def _facts(self, now: int) -> Facts:
        reloader = self._seen.reloader
        refused = f"the last policy was refused: {reloader.last_error}"
        return Facts(
            at_ms=self._wall_ns() // 1_000_000,
            uptime_s=(now - self._began_ns) / 1e9,
            version=self._version,
            rule=reloader.policy.scheduler.policy,
            why_not_ready=self._seen.why_not_ready(),
            classes=reloader.policy.slo_classes(),
            notices=(*([refused] if reloader.last_error else []), *self._seen.notices()),
            changes=self._seen.changes(),
        )

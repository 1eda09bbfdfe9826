"""One question, asked and answered beside the decision loop: do these streams fit together?

Rule: a Proposal is an immutable snapshot, `run` is pure and may take its time in another thread or
process; decisions go on meanwhile. The Verdict is committed by a later `decide`, and only if the
devices still are where the snapshot said they would be; else the question is asked again.

Streams do not migrate: each reservation belongs to one device. A new one is tried on the devices of
its model in order of name. What is planned to start before `cut_ns` stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tritonsched.core.planning import (
    HOLDS,
    FrameKey,
    PlannedBatch,
    arrivals,
    plan,
)
from tritonsched.core.reservation import Reservation

NEAREST_STEPS = 5  # bisections for the nearest period or deadline that fits: within 3 % of it
NEAREST_SPAN = 4  # how many times the asked period or deadline is looked at


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What a proposal knows of one device. free_ns: when what stays planned is done. granted: its
    streams. skip: their frames that stay planned. caps: most rows a batch by model. safe_ns: by
    model, promised times of 0, 1, ... rows.
    """

    device: str
    free_ns: int
    granted: tuple[Reservation, ...]
    skip: frozenset[FrameKey]
    caps: Mapping[str, int]
    safe_ns: Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Nearest:
    """What would have been granted instead, each with all else as asked; None: nothing near."""

    period_ns: int | None = None
    relative_deadline_ns: int | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer. plans: the devices' new plans from `cut_ns` on. added: the reservation as
    granted, from its first frame that can be kept. dropped: streams that no longer fit.
    """

    proposal: "Proposal"
    plans: Mapping[str, Sequence[PlannedBatch]] = field(default_factory=dict)
    added: Reservation | None = None
    device: str = ""
    dropped: tuple[Reservation, ...] = ()
    nearest: Nearest = Nearest()


@dataclass(frozen=True, slots=True)
class Proposal:
    """Does `wanted` fit beside what is granted? Without `wanted`: does everything still fit?

    others: models that could serve the stream instead, the best first. attempt: how often it was
    asked before.
    """

    cut_ns: int
    lead_ns: int
    reply_ns: int
    devices: tuple[DevicePlan, ...]
    wanted: Reservation | None = None
    others: tuple[str, ...] = ()
    attempt: int = 1

    def run(self) -> Verdict:
        """The answer; O(frames x categories) a try."""
        if self.wanted is None:
            return self._tested_again()
        found = self._fits(self.wanted)
        return found or Verdict(self, nearest=self._nearest(self.wanted))

    def _fits(self, wanted: Reservation) -> Verdict | None:
        later = wanted.from_time(self.cut_ns + wanted.jitter_ns)
        if later is None:
            return None
        for device in self.devices:
            if wanted.rows <= device.caps.get(wanted.model, 0):
                batches = self._planned(device, (*device.granted, later))
                if batches is not None:
                    return Verdict(self, {device.device: batches}, later, device.device)
        return None

    def _planned(
        self, device: DevicePlan, streams: Sequence[Reservation]
    ) -> list[PlannedBatch] | None:
        coming = arrivals(
            streams,
            lead_ns=self.lead_ns,
            reply_ns=self.reply_ns,
            skip=device.skip,
            from_ns=self.cut_ns,
        )
        caps = {stream.category: device.caps[stream.model] for stream in streams}
        return plan(
            coming,
            lambda model, rows: device.safe_ns[model][rows],
            caps=caps,
            free_ns=max(device.free_ns, self.cut_ns),
            holds=HOLDS,
        )

    def _tested_again(self) -> Verdict:
        """All devices; on each the least valuable, then the newest streams give way."""
        plans: dict[str, Sequence[PlannedBatch]] = {}
        dropped: list[Reservation] = []
        for device in self.devices:
            streams = sorted(device.granted, key=lambda stream: (-stream.weight, stream.id))
            dropped += [s for s in streams if s.rows > device.caps.get(s.model, 0)]
            streams = [s for s in streams if s.rows <= device.caps.get(s.model, 0)]
            batches = self._planned(device, streams)
            while batches is None:
                dropped.append(streams.pop())
                batches = self._planned(device, streams)
            plans[device.device] = batches
        return Verdict(self, plans, dropped=tuple(dropped))

    def _nearest(self, wanted: Reservation) -> Nearest:
        def by_period(value: int) -> Reservation:
            return replace(wanted, period_ns=value)

        def by_deadline(value: int) -> Reservation:
            return replace(wanted, relative_deadline_ns=value)

        return Nearest(
            self._least(wanted.period_ns, by_period),
            self._least(wanted.relative_deadline_ns, by_deadline),
            next(self._other_models(wanted), None),
        )

    def _other_models(self, wanted: Reservation) -> Iterator[str]:
        for model in self.others:
            if self._fits(replace(wanted, model=model)) is not None:
                yield model

    def _least(self, asked: int, changed: Callable[[int], Reservation]) -> int | None:
        """The least value above `asked`, up to NEAREST_SPAN times that, that was seen to fit."""
        low, high = asked, asked * NEAREST_SPAN
        if self._fits(changed(high)) is None:
            return None
        for _ in range(NEAREST_STEPS):
            middle = (low + high) // 2
            if self._fits(changed(middle)) is None:
                low = middle
            else:
                high = middle
        return high

"""Where reservations are asked for. Rule: one question at a time, answered beside the decision
loop; whatever comes back is checked against where the devices are before it counts.

    reserve -> proposal (snapshot) -> Proposal.run, in a thread -> judge -> commit, in `decide`

A verdict counts if nothing but time went by: it came before its cut, and each device can still
start the first batch of its merged plan by that batch's latest start. Else it is asked again with a
later cut. When a promise moves by more than MOVED_SHARE, whether it was learnt, reloaded or comes
of another model, all streams are tested again; those that no longer fit are told.
"""

from collections import deque
from collections.abc import Callable, Iterable

from tritonsched.core.batch import Decision, Grant, Refuse
from tritonsched.core.devices import DeviceState
from tritonsched.core.proposal import DevicePlan, Proposal, Verdict
from tritonsched.core.request import Request
from tritonsched.core.reservation import RefusalReason, Reservation
from tritonsched.core.serving import Serving
from tritonsched.core.streams import STREAMS_MAX, Lane, Streams
from tritonsched.core.tuning import Tuning

CUT_NS = 500_000_000  # the plan before that stays as it is; the time a test may take
ATTEMPTS_MAX = 4
ASKED_MAX = 64  # reservations waiting for their answer
MOVED_SHARE = 0.05  # of the promised time of a full batch

RowsCap = Callable[[str, str], int]


class Desk:
    """Questions and answers. State: who waits, the one verdict that is not committed."""

    def __init__(self, streams: Streams, serving: Serving, rows_cap: RowsCap) -> None:
        self._streams = streams
        self._serving = serving
        self._rows_cap = rows_cap
        self._asked: deque[tuple[Reservation, int]] = deque()
        self._answers: list[Decision] = []
        self._verdict: Verdict | None = None
        self._is_out = False
        self._retest = 0  # attempt; 0: not due
        self._basis: dict[tuple[str, str], int] = {}  # promised times that the plans rest on

    def ask(self, reservation: Reservation) -> None:
        """A stream wants a guarantee; the answer comes with a later `decide`."""
        waiting = (asked.id for asked, _ in self._asked)
        if reservation.id in waiting or any(r.id == reservation.id for r in self._streams):
            raise ValueError(f"reservation {reservation.id} exists already; release it first")
        pairs = self._serving.pairs(reservation.model)
        if not pairs:
            self._refuse(reservation, RefusalReason.TRITON_UNAVAILABLE)
        elif not all(profile.is_proven for _, profile in pairs):
            self._refuse(reservation, RefusalReason.NOT_MEASURED)
        elif len(self._asked) >= ASKED_MAX or len(self._streams) >= STREAMS_MAX:
            self._refuse(reservation, RefusalReason.TOO_MANY)
        else:
            self._asked.append((reservation, 1))

    def release(self, reservation_id: int) -> list[Request]:
        """The stream ends, or is not wanted any more. Returns its frames that wait."""
        self._asked = deque(asked for asked in self._asked if asked[0].id != reservation_id)
        return self._streams.release(reservation_id)

    def recheck(self) -> None:
        """Something moved (times, models, a reloaded number): do the plans still rest on what is
        promised?
        """
        if not self._retest and any(self._has_moved(*key) for key in self._basis):
            self._retest = 1

    def _has_moved(self, model: str, device: str) -> bool:
        then = self._basis[model, device]
        for served, profile in self._serving.pairs(model):
            if served.name == device:
                now = profile.safe_ns(self._rows_cap(model, device))
                return abs(now - then) > MOVED_SHARE * then
        return True

    def proposal(self, tuning: Tuning, now: int) -> Proposal | None:
        """The next question, if there is one and none is out. `judge` must follow."""
        if self._is_out or not (self._retest or self._asked):
            return None
        self._is_out = True
        if self._retest:
            devices = sorted(self._serving.devices(), key=lambda device: device.name)
            return self._snapshot(devices, None, self._retest, tuning, now)
        wanted, attempt = self._asked[0]
        pairs = self._serving.pairs(wanted.model)
        devices = sorted((device for device, _ in pairs), key=lambda device: device.name)
        return self._snapshot(devices, wanted, attempt, tuning, now)

    def judge(self, verdict: Verdict) -> None:
        """The answer to the question that is out."""
        self._verdict = verdict

    def commit(self, tuning: Tuning, now: int) -> list[Decision]:
        """What is decided about reservations since the last time."""
        verdict, self._verdict = self._verdict, None
        if verdict is not None:
            self._is_out = False
            self._settle(verdict, tuning, now)
        answers, self._answers = self._answers, []
        return answers

    def _settle(self, verdict: Verdict, tuning: Tuning, now: int) -> None:
        wanted = verdict.proposal.wanted
        if wanted is not None and (not self._asked or self._asked[0][0].id != wanted.id):
            return  # released meanwhile
        if wanted is not None:
            self._asked.popleft()
            if verdict.added is None:
                self._refuse(wanted, RefusalReason.UNSCHEDULABLE, verdict)
                return
        lanes = self._merged(verdict, tuning, now)
        if lanes is not None:
            self._install(verdict, lanes)
        elif wanted is None:
            self._retest = min(ATTEMPTS_MAX, self._retest + 1)
        elif verdict.proposal.attempt < ATTEMPTS_MAX:
            self._asked.appendleft((wanted, verdict.proposal.attempt + 1))
        else:
            self._refuse(wanted, RefusalReason.BUSY)

    def _merged(self, verdict: Verdict, tuning: Tuning, now: int) -> dict[str, Lane] | None:
        """The devices' plans to come; None if a device is not where the question had it."""
        cut_ns = verdict.proposal.cut_ns
        if now > cut_ns:
            return None
        lanes: dict[str, Lane] = {}
        for device in self._serving.devices():
            if device.name in verdict.plans:
                lane = self._streams.merged(device.name, verdict.plans[device.name], cut_ns)
                if device.available_ns(now, tuning.rtt_ns) > lane.latest_ns():
                    return None
                lanes[device.name] = lane
        return lanes

    def _install(self, verdict: Verdict, lanes: dict[str, Lane]) -> None:
        for device, lane in lanes.items():
            self._streams.install(device, lane)
        for stream in verdict.dropped:
            self._streams.demote(stream.id)
            self._refuse(stream, RefusalReason.NO_LONGER_FITS)
        if verdict.added is None:
            self._retest = 0
            self._basis.clear()
        else:
            self._streams.grant(verdict.added, verdict.device)
            self._answers.append(
                Grant(verdict.added, verdict.device, tuple(verdict.plans[verdict.device]))
            )
        for stream in self._streams:
            for served, profile in self._serving.pairs(stream.model):
                key = (stream.model, served.name)
                self._basis.setdefault(key, profile.safe_ns(self._rows_cap(*key)))

    def _snapshot(
        self,
        devices: Iterable[DeviceState],
        wanted: Reservation | None,
        attempt: int,
        tuning: Tuning,
        now: int,
    ) -> Proposal:
        cut_ns = now + attempt * CUT_NS
        return Proposal(
            cut_ns=cut_ns,
            lead_ns=tuning.lead_ns,
            reply_ns=tuning.reply_ns,
            devices=tuple(self._device(device, wanted, cut_ns, tuning, now) for device in devices),
            wanted=wanted,
            others=self._others(wanted.model) if wanted is not None else (),
            attempt=attempt,
        )

    def _others(self, model: str) -> tuple[str, ...]:
        """Variants that could serve a stream in place of the default one, the best first."""
        places = self._serving.places(model)
        worth = {place.variant: place.worth for place in places[1:] if place.profile.is_proven}
        worth.pop(places[0].variant, None)
        return tuple(sorted(worth, key=lambda name: (-worth[name], name)))

    def _device(
        self, device: DeviceState, wanted: Reservation | None, cut_ns: int, tuning: Tuning, now: int
    ) -> DevicePlan:
        models = {stream.model for stream in self._streams.of_device(device.name)}
        models |= {wanted.model, *self._others(wanted.model)} if wanted is not None else set()
        caps: dict[str, int] = {}
        safe_ns: dict[str, list[int]] = {}
        for model in sorted(models):
            for served, profile in self._serving.pairs(model):
                if served is device:
                    caps[model] = self._rows_cap(model, device.name)
                    safe_ns[model] = [profile.safe_ns(rows) for rows in range(caps[model] + 1)]
        return self._streams.snapshot(
            device.name,
            free_ns=device.available_ns(now, tuning.rtt_ns),
            cut_ns=cut_ns,
            caps=caps,
            safe_ns=safe_ns,
        )

    def _refuse(
        self, reservation: Reservation, reason: RefusalReason, verdict: Verdict | None = None
    ) -> None:
        self._answers.append(Refuse(reservation, reason, verdict.nearest if verdict else None))

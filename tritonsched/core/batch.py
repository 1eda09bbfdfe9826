"""Batches and decisions. Rule: a decision is a value; the driver carries it out, in order."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from tritonsched.core.planning import PlannedBatch
from tritonsched.core.proposal import Nearest
from tritonsched.core.request import Outcome, RejectReason, Request
from tritonsched.core.reservation import RefusalReason, Reservation


@dataclass(slots=True, unsafe_hash=True)  # not frozen, as `Request` is not
class Batch:
    """Requests of one model and one signature that run together on one device. Nobody changes it.

    model: Triton's, which runs it; the members may have asked for a model that it is a variant of.
    rows: sum of the members' rows.
    dispatch_ns: when it was decided. expected_start_ns/expected_end_ns: as seen by the sidecar, the
    end being the moment the answer is back. expected_ns: execution alone.
    probe: sent to measure, not because it fits (see LatencyProfile); may be expected late.
    worth: what its answers are worth beside the best variant's, in (0, 1].
    server: of the device.
    """

    id: int
    model: str
    device: str
    requests: tuple[Request, ...]
    rows: int
    dispatch_ns: int
    expected_start_ns: int
    expected_ns: int
    probe: bool = False
    worth: float = 1.0
    server: str = ""

    def __init__(  # noqa: PLR0917
        self,
        id: int,  # noqa: A002
        model: str,
        device: str,
        requests: tuple[Request, ...],
        rows: int,
        dispatch_ns: int,
        expected_start_ns: int,
        expected_ns: int,
        probe: bool = False,
        worth: float = 1.0,
        server: str = "",
    ) -> None:
        self.id = id
        self.model = model
        self.device = device
        self.requests = requests
        self.rows = rows
        self.dispatch_ns = dispatch_ns
        self.expected_start_ns = expected_start_ns
        self.expected_ns = expected_ns
        self.probe = probe
        self.worth = worth
        self.server = server

    @property
    def expected_end_ns(self) -> int:
        return self.expected_start_ns + self.expected_ns

    def error_of(self, measured_ns: int) -> float:
        """How far its execution time was predicted off, as a share of the longer of the two."""
        off_ns = measured_ns - self.expected_ns  # two of a kind each: compiled, no calls
        longer_ns = max(measured_ns, self.expected_ns)
        return max(off_ns, -off_ns) / max(1, longer_ns)


@dataclass(slots=True, unsafe_hash=True)  # as `Batch`
class Completion:
    """A batch came back.

    ok: it was executed; its time teaches the profile.
    retried: it failed and the driver submits its members again; no outcome is counted, but for
    those that have `ended` with it.
    failed: members that were not executed though others were, each by a call of its own.
    sent_ns: when its message was written; None for the moment of its dispatch.
    returned_ns: when its answer came, if its members' replies were written since; None for now.
    """

    batch_id: int
    ok: bool = True
    retried: bool = False
    ended: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()
    sent_ns: int | None = None
    returned_ns: int | None = None

    def __init__(  # noqa: PLR0917
        self,
        batch_id: int,
        ok: bool = True,
        retried: bool = False,
        ended: frozenset[int] = frozenset(),
        failed: frozenset[int] = frozenset(),
        sent_ns: int | None = None,
        returned_ns: int | None = None,
    ) -> None:
        self.batch_id = batch_id
        self.ok = ok
        self.retried = retried
        self.ended = ended
        self.failed = failed
        self.sent_ns = sent_ns
        self.returned_ns = returned_ns

    @classmethod
    def lost(cls, batch: Batch, moved: Collection[Request]) -> "Completion":
        """Its server went away with it; `moved` are submitted again, for another server."""
        members, again = ({request.id for request in some} for some in (batch.requests, moved))
        return cls(batch.id, ok=False, retried=bool(moved), ended=frozenset(members - again))

    def outcomes(
        self, batch: Batch, abandoned: Collection[int], now: int
    ) -> Mapping[Outcome, Sequence[Request]]:
        """How its members end with it, but for those that are submitted again. abandoned: whose
        clients have left; they are not.
        """
        is_plain = self.ok and not (abandoned or self.failed or self.retried)
        if is_plain and now <= min([request.deadline_ns for request in batch.requests]):
            return {Outcome.SERVED: batch.requests}
        found: dict[Outcome, list[Request]] = {}
        for request in batch.requests:
            outcome = self._outcome(request, abandoned, now)
            is_over = not self.retried or request.id in self.ended
            if is_over or outcome is Outcome.CANCELLED:
                found.setdefault(outcome, []).append(request)
        return found

    def _outcome(self, request: Request, abandoned: Collection[int], now: int) -> Outcome:
        if abandoned and request.id in abandoned:
            return Outcome.CANCELLED
        if not self.ok or (self.failed and request.id in self.failed):
            return Outcome.FAILED
        return Outcome.SERVED if now <= request.deadline_ns else Outcome.LATE


@dataclass(slots=True, unsafe_hash=True)  # as `Batch`
class Dispatch:
    """Send this batch now."""

    batch: Batch

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse this request now. retry_after_ns: from now; None where trying again is pointless."""

    request: Request
    reason: RejectReason
    retry_after_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Expire:
    """The deadline passed while the request was waiting."""

    request: Request


@dataclass(frozen=True, slots=True)
class Grant:
    """The stream is guaranteed, from the first frame of `reservation` on: frames that came too soon
    to be planned are cut off. plan: the device's batches to come.
    """

    reservation: Reservation
    device: str
    plan: tuple[PlannedBatch, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """The stream is not guaranteed, or (no-longer-fits) not any more: its frames are best effort.

    nearest: what would have been granted, if that was looked for.
    """

    reservation: Reservation
    reason: RefusalReason
    nearest: Nearest | None = None


Decision = Dispatch | Reject | Expire | Grant | Refuse
Summary = tuple[str | int | bool | tuple[int, ...] | None, ...]


def summary(decision: Decision) -> Summary:
    """A decision in one comparable line: what a decision log holds, live and simulated."""
    match decision:
        case Dispatch(batch):
            members = tuple(request.id for request in batch.requests)
            end_ns = batch.expected_end_ns
            return ("dispatch", batch.id, batch.model, batch.device, members, end_ns, batch.probe)
        case Reject(request, reason, retry_after_ns):
            return ("reject", request.id, reason.value, retry_after_ns)
        case Expire(request):
            return ("expire", request.id)
        case Grant(reservation, device, plan):
            return ("grant", reservation.id, device, reservation.start_ns, len(plan))
        case Refuse(reservation, reason):
            return ("refuse", reservation.id, reason.value)
        case _:
            assert_never(decision)

"""Utility-density look-ahead: of a few batches, the one that leaves most to be collected.

A. Everything fits: deadline order, as in `lite`; so are the turns of those without a deadline.
B. Otherwise each queue offers, for each variant, its densest batch and the one that its head's
   slack allows; those with the highest density and the earliest latest start are kept.
C. Each is followed through the queues as they are (no arrivals are guessed): whenever a device is
   free, a base rule takes the next batch, once the queue that must start first, once the densest,
   with the best variant, and again with one as good as the candidate's. Score: what the best of
   these collects up to the horizon, less a price for the time used.
D. The best one is formed exactly and sent.
B and C are `rollout.py`, compiled. The one step of `lite` chooses where there is one batch to
choose from, without numba, with more queues than LINES_MAX, and while a model that waits is not
measured.
Source: scheduling study 5 ("UDR"), steps A to D; there the best variant follows each candidate.
"""

from collections.abc import Sequence
from itertools import islice

from tritonsched.core.batching import densest, filled, head_candidate
from tritonsched.core.policies.kernels import Choose, compiled
from tritonsched.core.policies.lite import Lite
from tritonsched.core.policies.rollout import CANDIDATES_MAX, Chosen, Terms
from tritonsched.core.policies.scene import Line, scene_of
from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import PATIENCE_NS

STEPS_MAX = 12  # batches that a roll-out looks ahead
LINES_MAX = 64
DEVICES_MAX = 16
PICKS_MAX = 6000  # looks at a queue in one decision
PRICE_SHARE = 0.05  # of the usual density, for each nanosecond used
PRICE_SHARE_ALONE = 0.4  # where there is one model: no other stands for what is yet to come
PRICE_GAIN = 0.05  # of the newest batch in the usual density


class Lookahead(Lite):
    """The default rule. State: that of `lite`; the usual density of batches and the models seen,
    by device.
    """

    name = "lookahead"

    def __init__(self, choose: Choose | None = None) -> None:
        super().__init__()
        self._choose = choose or compiled()
        self._usual: dict[str, float] = {}
        self._seen: dict[str, set[str]] = {}  # models that had to be weighed, by device

    def _weigh(
        self, queues: Sequence[RequestQueue], view: SchedulerView, device: str, start_ns: int
    ) -> Choice | None:
        """Steps B to D."""
        several = len(queues) > 1 or len(view.variants(queues[0].model, device)) > 1
        if self._choose is None or not several or len(queues) > LINES_MAX:
            return super()._weigh(queues, view, device, start_ns)
        devices = [device, *(name for name in view.devices() if name != device)][:DEVICES_MAX]
        lines = [Line(queue, view, devices) for queue in queues]
        if any(line.is_unproven for line in lines):  # its time is nothing, so it could always wait
            return super()._weigh(queues, view, device, start_ns)
        free_ns = [start_ns, *(view.free_ns(name) for name in devices[1:])]
        seen = self._seen.setdefault(device, set())
        seen.update([queue.model for queue in queues])
        share = PRICE_SHARE if len(seen) > 1 else PRICE_SHARE_ALONE
        terms = Terms(
            device=0,
            reply_ns=view.tuning.reply_ns,
            horizon_ns=start_ns + _horizon_ns(queues),
            price=share * self._usual.get(device, 0.0),
            steps=_steps(lines),
        )
        chosen = self._choose(scene_of(lines, free_ns), terms)
        if chosen[0] < 0:
            return None
        usual = self._usual.get(device, chosen[-1])
        self._usual[device] = usual + PRICE_GAIN * (chosen[-1] - usual)
        return _formed(lines, chosen, view, device, start_ns)


def _formed(
    lines: Sequence[Line], chosen: Chosen, view: SchedulerView, device: str, start_ns: int
) -> Choice | None:
    """Step D. Of rows of many widths the roll-out knew the mean; there the walk is made again."""
    number, is_head, count, filled_ns, _ = chosen
    queue, way = [(line.queue, way) for line in lines for way in line.ways][number]
    if queue.rows != queue.size:
        form = head_candidate if is_head else densest
        found = form(queue, view, device, start_ns, way)
        return found.choice if found else None
    variant = "" if way.model == queue.model else way.model
    if is_head:
        taken = (request for request in queue if request.deadline_ns >= filled_ns)
        return Choice(queue, tuple(islice(taken, count)), variant)
    return Choice(queue, filled(queue, filled_ns, count), variant)


def _steps(lines: Sequence[Line]) -> int:
    """As many as the bound on looks allows: each candidate is followed twice, or four times."""
    follows = 4 if any(len(line.ways) > 1 for line in lines) else 2
    return min(STEPS_MAX, PICKS_MAX // (CANDIDATES_MAX * follows * len(lines)))


def _horizon_ns(queues: Sequence[RequestQueue]) -> int:
    """1.5 times the mean relative deadline of the heads, one second at most."""
    total_ns = 0
    for queue in queues:
        head = queue.head
        span_ns = head.deadline_ns - head.arrival_ns if head.has_deadline else head.patience_ns
        total_ns += min(span_ns, PATIENCE_NS)
    return max(1, min(PATIENCE_NS, total_ns * 3 // (2 * len(queues))))

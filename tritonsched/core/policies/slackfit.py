"""SuperServe's SlackFit: the head's slack picks a bucket of execution times, the bucket its largest
batch.

Khare et al., NSDI 2025: requests in order of deadlines; the times of all pairs of (variant, batch)
are cut into even buckets; of the highest bucket that the head's slack allows the largest batch is
taken. With time to spare that is a slow pair, an accurate variant; when load eats the slack it is a
short one, in which only small variants have large batches: accuracy gives way by itself.

Changed: a batch counts as what waits for it and not as what it could hold, so that a few requests
get the most accurate variant that their slack allows; of equal batches the more accurate goes.
Several models take turns by the deadline of their heads. Here variants are models of their own in
Triton, all loaded, instead of parts of one network. For a model without variants the rule is the
largest batch that keeps the head, which shrinks under overload; what is late even alone and next on
the shortest variant is refused by the scheduler, where the original drops it at its deadline.
"""

from collections.abc import Sequence

from tritonsched.core.batching import Candidate, head_candidate, rows_of
from tritonsched.core.policy import Choice, SchedulerView
from tritonsched.core.queues import RequestQueue
from tritonsched.core.variant import Way

BUCKETS = 16  # of the times from the shortest to the longest; the paper leaves it to the operator


class Slackfit:
    """Earliest deadline first, in the variant and the batch that fill the head's slack."""

    name = "slackfit"
    keeps_deadlines = True

    def choose(self, view: SchedulerView, device: str, *, start_ns: int, now: int) -> Choice | None:
        for queue in sorted(view.queues(device), key=_due):
            best = _fitting(queue, view, device, start_ns)
            if best is not None:
                return best.choice
        return None


def _due(queue: RequestQueue) -> tuple[int, int]:
    return (queue.head.due_ns, queue.head.id)


def _fitting(
    queue: RequestQueue, view: SchedulerView, device: str, start_ns: int
) -> Candidate | None:
    """Of the highest bucket the largest batch; None if the head would be late on every variant."""
    ways = view.variants(queue.model, device)
    offers = (head_candidate(queue, view, device, start_ns, way) for way in ways)
    found = [candidate for candidate in offers if candidate is not None]
    if len(found) < 2:
        return found[0] if found else None
    width_ns = _width_ns(ways, view, device)
    highest = max(candidate.safe_ns // width_ns for candidate in found)
    within = [candidate for candidate in found if candidate.safe_ns // width_ns == highest]
    return max(within, key=lambda candidate: rows_of(candidate.requests))


def _width_ns(ways: Sequence[Way], view: SchedulerView, device: str) -> int:
    """Of a bucket, in ns: a part of the longest time that a batch of any variant can take."""
    longest_ns = max(
        view.safe_ns(way.model, device, view.rows_cap(way.model, device)) for way in ways
    )
    return max(1, longest_ns // BUCKETS)

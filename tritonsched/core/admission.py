"""The test at arrival of a single request: is there room, and can it be in time at all?

Rule: never refuse on what was not measured (an unproven profile promises 0 ns), and refuse at once
what is hopeless: a refusal in a millisecond is worth more to the client than one at the deadline.
"""

from tritonsched.core.request import NEVER_NS, RejectReason, Request
from tritonsched.core.variant import ServerState


def refusal(
    request: Request,
    *,
    full: RejectReason | None,
    earliest_finish_ns: int,
    server: ServerState,
) -> RejectReason | None:
    """Why this request cannot be taken, or None.

    full: why it has no place in its model's queue (core/fairness.py); None if it has.
    earliest_finish_ns: when its answer would be written if it ran alone and next.
    """
    if server is ServerState.AWAY:
        return RejectReason.TRITON_UNAVAILABLE
    if server is ServerState.DRAINING and not request.retry:  # what was accepted is finished
        return RejectReason.DRAINING
    if full is not None:
        return full
    if is_hopeless(request, earliest_finish_ns):
        return RejectReason.DEADLINE_UNREACHABLE
    return None


def is_hopeless(request: Request, earliest_finish_ns: int) -> bool:
    """Even alone and next it would be late."""
    return request.deadline_ns < NEVER_NS and earliest_finish_ns > request.deadline_ns

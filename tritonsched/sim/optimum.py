"""The exact clairvoyant optimum for one model, one device and one deadline for all.

Rule: it is a dynamic programme, not a bound: some schedule serves that many, and none serves more.
With equal relative deadlines a batch may be taken as a run of consecutive arrivals: a member left
out in the middle can take the place of the batch's first one, whose deadline is earlier.
    F[j][k] = earliest end with k of the first j requests served
            = min(F[j-1][k], max(F[j-b][k-b], a_j) + exec(b) if that is <= d_(j-b+1), for all b)
O(requests^2 x sizes), in rows of numpy. Source: the scheduling study, section 1 (B3).
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from tritonsched.core.request import Request
from tritonsched.sim.world import SimModel


def most_in_time(requests: Sequence[Request], model: SimModel) -> int:
    """How many of them can be in time at most; exact times, the first device of the model.

    ValueError if they are not of one model, one row and one relative deadline each.
    """
    kinds = {(r.model, r.rows, r.deadline_ns - r.arrival_ns) for r in requests}
    if len(kinds) > 1 or any(r.model != model.name or r.rows != 1 for r in requests):
        raise ValueError(f"one model, one row, one deadline are needed; there are {kinds}")
    many = len(requests)
    took = [model.exec_on(model.devices[0])(rows) for rows in range(1, model.rows_max + 1)]
    start = np.full(many + 1, np.inf)
    start[0] = 0.0
    ends = deque([start], maxlen=model.rows_max)  # F of the last ones, the newest last
    for j, request in enumerate(requests, start=1):
        best = ends[-1].copy()
        for b, exec_ns in enumerate(took[:j], start=1):
            deadline_ns = requests[j - b].deadline_ns
            if request.arrival_ns + exec_ns > deadline_ns:
                continue
            end = np.maximum(ends[-b][: many + 1 - b], request.arrival_ns) + exec_ns
            end[end > deadline_ns] = np.inf
            np.minimum(best[b:], end, out=best[b:])
        ends.append(best)
    return int(np.flatnonzero(np.isfinite(ends[-1]))[-1])

"""What tests of the rules share: a device busy until a moment, and a view without a scheduler."""

from collections.abc import Callable, Sequence

from tests.helpers import EXACT, MS, OneDevice, Table, dispatch, exact, request, submit
from tritonsched.core.policy import Policy
from tritonsched.core.queues import RequestQueue
from tritonsched.core.request import Request
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Way

TWO = {"m": (8, ("gpu",)), "n": (8, ("gpu",))}


def busy_until(ms: int, policy: str | Policy) -> Table:
    """A device that runs request 99 of a third model until then. Others: 5 ms + 1 ms a row."""
    table = Table(policy, models={**TWO, "long": (1, ("gpu",))})
    table.scheduler.set_profile("long", "gpu", exact({1: ms * MS}))
    first = request(99, model="long")
    table.at(0, submit(first))
    table.expect(0, dispatch(first))
    return table


def burst(numbers: range, deadline_ms: float, *, model: str = "m") -> list[Request]:
    """Requests that are alike."""
    return [request(n, deadline=int(deadline_ms * MS), model=model) for n in numbers]


class View(OneDevice):
    """Queues on any device, with times by rows."""

    tuning: Tuning = EXACT

    def __init__(self, times: Callable[[int], int], *queues: RequestQueue) -> None:
        self._times = times
        self._queues = queues

    def queues(self, device: str) -> Sequence[RequestQueue]:
        return [queue for queue in self._queues if len(queue)]

    def variants(self, model: str, device: str) -> Sequence[Way]:
        return (Way(model),)

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        return self._times(rows)

    def rows_cap(self, model: str, device: str) -> int:
        return 32


def queue_of(requests: Sequence[Request]) -> RequestQueue:
    """One queue with all of them."""
    queue = RequestQueue(requests[0].model, 0, alone=False)
    for made in requests:
        queue.push(made)
    return queue

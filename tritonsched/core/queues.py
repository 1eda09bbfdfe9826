"""Deadline-ordered queues, one per (model, signature). Rule: order is (due, id); ties never random.

A sorted list under `bisect`: push and remove cost a binary search and a memory move of at most
`queue_requests_max` pointers (about 1 µs at 4096), and unlike a heap it can be read in order
without popping, which is what batch forming does all the time.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

from tritonsched.core.request import NEVER_NS, Request

Entry = tuple[int, int, Request]


def _entry(request: Request) -> Entry:
    return (request.due_ns, request.id, request)


class RequestQueue:
    """Requests of one model that may share a batch, earliest due first.

    alone: members never share a batch. rows: sum over the members. deadlines: members that have
    one.
    """

    __slots__ = ("_entries", "_weights", "alone", "deadlines", "model", "rows", "signature")

    def __init__(self, model: str, signature: int, *, alone: bool) -> None:
        self.model = model
        self.signature = signature
        self.alone = alone
        self.rows = 0
        self.deadlines = 0
        self._entries: list[Entry] = []
        self._weights: dict[float, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (entry[2] for entry in self._entries)

    def __repr__(self) -> str:
        kind = "alone" if self.alone else f"signature {self.signature}"
        return f"<queue {self.model} {kind}: {len(self)} requests, {self.rows} rows>"

    @property
    def head(self) -> Request:
        """The request due first; the queue must not be empty."""
        return self._entries[0][2]

    @property
    def first_deadline_ns(self) -> int:
        """The earliest deadline among the members; NEVER_NS if none has one."""
        if not self.deadlines:
            return NEVER_NS
        return next(entry[2].deadline_ns for entry in self._entries if entry[2].has_deadline)

    @property
    def has_one_weight(self) -> bool:
        """All members are worth the same: deadline order is value order."""
        return len(self._weights) <= 1

    def push(self, request: Request) -> None:
        insort(self._entries, _entry(request))
        self.rows += request.rows
        self.deadlines += request.has_deadline
        self._weights[request.weight] = self._weights.get(request.weight, 0) + 1

    def remove(self, request: Request) -> None:
        """Take one member out; it must be in the queue."""
        index = bisect_left(self._entries, _entry(request)[:2], key=lambda entry: entry[:2])
        assert self._entries[index][1] == request.id, f"{request.id} is not in {self!r}"
        del self._entries[index]
        self.rows -= request.rows
        self.deadlines -= request.has_deadline
        self._weights[request.weight] -= 1
        if not self._weights[request.weight]:
            del self._weights[request.weight]


class QueueSet:
    """All queues, and the index by request id that cancellation needs. Empty queues are dropped."""

    __slots__ = ("_by_id", "_by_model")

    def __init__(self) -> None:
        self._by_model: dict[str, dict[tuple[int, bool], RequestQueue]] = {}
        self._by_id: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._by_id

    def of_model(self, model: str) -> list[RequestQueue]:
        """The model's non-empty queues, oldest queue first."""
        return list(self._by_model.get(model, {}).values())

    def __iter__(self) -> Iterator[RequestQueue]:
        for queues in list(self._by_model.values()):
            yield from list(queues.values())

    def requests_of(self, model: str) -> int:
        """How many requests wait for the model."""
        return sum(map(len, self._by_model.get(model, {}).values()))

    def push(self, request: Request) -> None:
        assert request.id not in self._by_id, f"request {request.id} is queued already"
        queues = self._by_model.setdefault(request.model, {})
        key = (0 if request.alone else request.signature, request.alone)
        queue = queues.get(key)
        if queue is None:
            queue = queues[key] = RequestQueue(request.model, key[0], alone=request.alone)
        queue.push(request)
        self._by_id[request.id] = request

    def pop(self, request_id: int) -> Request | None:
        """Remove and return the request; None if it is not queued."""
        request = self._by_id.pop(request_id, None)
        if request is None:
            return None
        queues = self._by_model[request.model]
        key = (0 if request.alone else request.signature, request.alone)
        queues[key].remove(request)
        if not len(queues[key]):
            del queues[key]
            if not queues:
                del self._by_model[request.model]
        return request

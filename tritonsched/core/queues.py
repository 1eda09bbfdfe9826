"""Deadline-ordered queues, one per (model, signature). Rule: order is (due, id); ties never random.

A queue keeps its members in lanes, one per (weight, has a deadline), each a sorted list under
`bisect`: push and remove cost a binary search and a memory move of at most `queue_requests_max`
pointers (about 1 µs at 4096), and unlike a heap it can be read in order without popping, which is
what batch forming does all the time. Lanes make "who would be late" one binary search each and
"most valuable first" free. There are as many as the policy file has weights, times two.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice

from tritonsched.core.request import NEVER_NS, Request

Entry = tuple[int, int, Request]
Key = tuple[int, bool, str]
"""(signature, alone, server): what members of one queue have in common."""


def _entry(request: Request) -> Entry:
    return (request.due_ns, request.id, request)


def _key(request: Request) -> Key:
    return (0 if request.alone else request.signature, request.alone, request.server)


def _in_order(lanes: Sequence[list[Entry]]) -> Iterator[Request]:
    """Members of the lanes by (due, id), read as far as the caller goes."""
    entries = lanes[0] if len(lanes) == 1 else merge(*lanes)
    return (entry[2] for entry in entries)


class RequestQueue:
    """Requests of one model that may share a batch, earliest due first.

    alone: members never share a batch. server: the one that must run them; empty: any. rows: sum
    over the members. deadlines: members that have one. shaped: members whose worth falls before
    their deadline. rows_widest: rows of the widest member since the queue was last empty.
    """

    __slots__ = (
        "_first_ns", "_head", "_lanes", "alone", "deadlines", "model", "rows", "rows_widest",
        "server", "shaped", "signature", "size",
    )  # fmt: skip

    def __init__(self, model: str, signature: int, *, alone: bool, server: str = "") -> None:
        self.model = model
        self.signature = signature
        self.alone = alone
        self.server = server
        self.rows = 0
        self.rows_widest = 0
        self.size = 0
        self.deadlines = 0
        self.shaped = 0
        self._head: Entry | None = None  # None: not looked up since it left
        self._first_ns = NEVER_NS  # likewise, -1
        self._lanes: dict[tuple[float, bool], list[Entry]] = {}

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Request]:
        return _in_order([*self._lanes.values()])

    def __repr__(self) -> str:
        kind = "alone" if self.alone else f"signature {self.signature}"
        return f"<queue {self.model} {kind}: {len(self)} requests, {self.rows} rows>"

    @property
    def head(self) -> Request:
        """The request due first; the queue must not be empty."""
        if self._head is None:
            self._head = min(lane[0] for lane in self._lanes.values())
        return self._head[2]

    @property
    def first_deadline_ns(self) -> int:
        """The earliest deadline among the members; NEVER_NS if none has one."""
        if self._first_ns < 0:
            firsts = [lane[0][0] for (_, timed), lane in self._lanes.items() if timed]
            self._first_ns = min(firsts, default=NEVER_NS)
        return self._first_ns

    @property
    def full_until_ns(self) -> int:
        """Until then nobody loses anything; NEVER_NS if nobody has a deadline. O(n) if shaped."""
        if not self.shaped:
            return self.first_deadline_ns
        return min(request.full_until_ns for request in self)

    @property
    def weight_max(self) -> float:
        """What its most valuable member is worth."""
        return max(weight for weight, _ in self._lanes)

    def with_deadline(self) -> Iterator[Request]:
        """Members that have a deadline, earliest first."""
        return _in_order([lane for (_, timed), lane in self._lanes.items() if timed] or [[]])

    def without_deadline(self) -> Iterator[Request]:
        """Members that have none, oldest first."""
        return _in_order([lane for (_, timed), lane in self._lanes.items() if not timed] or [[]])

    def lanes(self) -> list[tuple[float, bool, list[Entry]]]:
        """(weight, has a deadline, members in order), the most valuable first; to be read only."""
        found = [(*key, entries) for key, entries in self._lanes.items()]
        if len(found) > 1:
            found.sort(key=lambda lane: lane[:2], reverse=True)
        return found

    def in_time(self, end_ns: int, count: int) -> Iterator[Request]:
        """The first `count` that may finish at `end_ns`: the most valuable first, then the earliest
        due.
        """
        lanes = self._lanes
        for weight in sorted({weight for weight, _ in lanes}, reverse=True):
            timed, patient = lanes.get((weight, True), []), lanes.get((weight, False), [])
            late = bisect_left(timed, (end_ns,))
            parts = [part for part in (timed[late : late + count], patient) if part]
            yield from islice(_in_order(parts), count) if parts else ()

    def last_missed_ns(self, end_ns: int) -> int | None:
        """The latest deadline before `end_ns`; None if finishing then is in time for everybody."""
        missed = None
        for (_, timed), lane in self._lanes.items():
            late = bisect_left(lane, (end_ns,)) if timed else 0
            if late and (missed is None or lane[late - 1][0] > missed):
                missed = lane[late - 1][0]
        return missed

    def push(self, request: Request) -> None:
        timed, entry = request.has_deadline, _entry(request)
        lane = self._lanes.setdefault((request.weight, timed), [])
        if lane and entry < lane[-1]:
            insort(lane, entry)
        else:  # as most that come
            lane.append(entry)
        if self.size == 0 or (self._head is not None and entry < self._head):
            self._head = entry
        if timed and entry[0] < self._first_ns:
            self._first_ns = entry[0]
        self.size += 1
        self.rows += request.rows
        if request.rows > self.rows_widest:
            self.rows_widest = request.rows
        self.deadlines += timed
        self.shaped += request.utility is not None

    def remove(self, requests: Sequence[Request]) -> None:
        """Take members out; they must be in the queue. Those that are a run of a lane, as a batch
        mostly is, leave it together.
        """
        key, run = (requests[0].weight, requests[0].has_deadline), 0
        for end, request in enumerate(requests):
            if (request.weight, request.has_deadline) != key:
                self._cut(key, requests[run:end])
                key, run = (request.weight, request.has_deadline), end
        self._cut(key, requests[run:])
        self._head, self._first_ns = None, -1
        self.size -= len(requests)
        self.rows -= sum([request.rows for request in requests])
        self.deadlines -= sum([request.has_deadline for request in requests])
        self.shaped -= sum([request.utility is not None for request in requests])

    def _cut(self, key: tuple[float, bool], gone: Sequence[Request]) -> None:
        """These are of one lane."""
        lane = self._lanes[key]
        first = bisect_left(lane, (gone[0].due_ns, gone[0].id))
        part = slice(first, first + len(gone))
        if [entry[2] for entry in lane[part]] == list(gone):
            del lane[part]
        else:
            for request in gone:
                index = bisect_left(lane, (request.due_ns, request.id))
                assert lane[index][1] == request.id, f"{request.id} is not in {self!r}"
                del lane[index]
        if not lane:
            del self._lanes[key]


class _Waiting:
    """What waits for one model: its queues, oldest first, how many requests, and by tenant."""

    __slots__ = ("queues", "size", "tenants")

    def __init__(self) -> None:
        self.queues: dict[Key, RequestQueue] = {}
        self.size = 0
        self.tenants: dict[str, dict[int, Request]] = {}


_NOTHING = _Waiting()


class QueueSet:
    """All queues, and the index by request id that cancellation needs. Empty queues are dropped."""

    __slots__ = ("_by_id", "_by_model")

    def __init__(self) -> None:
        self._by_model: dict[str, _Waiting] = {}
        self._by_id: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._by_id

    def __iter__(self) -> Iterator[RequestQueue]:
        for waiting in list(self._by_model.values()):
            yield from list(waiting.queues.values())

    def of_model(self, model: str) -> list[RequestQueue]:
        """The model's non-empty queues, oldest queue first."""
        return list(self._by_model.get(model, _NOTHING).queues.values())

    def of_models(self, models: set[str]) -> list[RequestQueue]:
        """Non-empty queues of these models, in order of model name, then age."""
        by_model = self._by_model
        found = [model for model in by_model if model in models]
        found.sort()
        return [queue for model in found for queue in by_model[model].queues.values()]

    def any_of(self, models: set[str]) -> bool:
        """Does anything wait for one of these models?"""
        return not models.isdisjoint(self._by_model)

    def requests_of(self, model: str) -> int:
        """How many requests wait for the model."""
        return self._by_model.get(model, _NOTHING).size

    def tenants_of(self, model: str) -> Mapping[str, dict[int, Request]]:
        """Who waits for the model: by tenant, then by id, the last that came last."""
        return self._by_model.get(model, _NOTHING).tenants

    def by_tenant(self) -> dict[str, int]:
        """How many requests of each wait, for all models together."""
        found: dict[str, int] = {}
        for waiting in self._by_model.values():
            for name, requests in waiting.tenants.items():
                found[name] = found.get(name, 0) + len(requests)
        return found

    def push(self, request: Request) -> None:
        assert request.id not in self._by_id, f"request {request.id} is queued already"
        waiting = self._by_model.get(request.model)
        if waiting is None:
            waiting = self._by_model[request.model] = _Waiting()
        key = _key(request)
        queue = waiting.queues.get(key)
        if queue is None:
            queue = waiting.queues[key] = RequestQueue(
                request.model, key[0], alone=request.alone, server=request.server
            )
        queue.push(request)
        self._by_id[request.id] = request
        waiting.size += 1
        waiting.tenants.setdefault(request.tenant, {})[request.id] = request

    def pop(self, request_id: int) -> Request | None:
        """Remove and return the request; None if it is not queued."""
        request = self._by_id.get(request_id)
        if request is not None:
            self.pop_all((request,))
        return request

    def pop_all(self, requests: Sequence[Request]) -> None:
        """Remove these of one queue; those that are not queued are left alone."""
        gone = [request for request in requests if self._by_id.pop(request.id, None) is not None]
        if not gone:
            return
        model, key = gone[0].model, _key(gone[0])
        waiting = self._by_model[model]
        queue = waiting.queues[key]
        queue.remove(gone)
        waiting.size -= len(gone)
        if not waiting.size:
            del self._by_model[model]
            return
        if not queue.size:
            del waiting.queues[key]
        for request in gone:
            tenant = waiting.tenants[request.tenant]
            del tenant[request.id]
            if not tenant:
                del waiting.tenants[request.tenant]

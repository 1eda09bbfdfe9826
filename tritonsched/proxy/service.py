"""The door between frontends and driver: which model is it, may it be merged, is there room?

Rule: no `await` between reading the model's entry and submitting, unless the model is new. A model
that Triton does not serve is not scheduled at all: the call goes through as it came and Triton
says why.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from tritonsched.backend.base import Backend
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.core.batch import Refuse
from tritonsched.core.variant import Family, Variant
from tritonsched.errors import (
    BadReservation,
    Draining,
    TritonschedError,
    TritonUnavailable,
    UnknownReservation,
    VariantsOnly,
)
from tritonsched.proxy.answered import answered
from tritonsched.proxy.asked import asked_of, cut_name
from tritonsched.proxy.client_regions import ClientRegions
from tritonsched.proxy.driver import Driver
from tritonsched.proxy.endings import internal
from tritonsched.proxy.families import Families
from tritonsched.proxy.held import Held
from tritonsched.proxy.homes import Homes
from tritonsched.proxy.intake import Intake
from tritonsched.proxy.job import NO_REGIONS, Job
from tritonsched.proxy.mergeable import Signatures, lone_reason
from tritonsched.proxy.model_cache import ModelCache
from tritonsched.proxy.recount import Recount
from tritonsched.proxy.reserving import Entry, Reservations
from tritonsched.proxy.room import Room
from tritonsched.proxy.routes import Route, Routes
from tritonsched.proxy.shield import Document, Infer, Shield, Strict, Use
from tritonsched.proxy.streaming import Sequences, as_served, sequence_of
from tritonsched.proxy.wish import Wish, frame_of, reservation_of
from tritonsched.tensors import Answer, Cancel, Done, InferCall, Send

JUDGEMENTS_MAX = 1024  # (model, version, form) entries remembered
_NO_NAMES: frozenset[str] = frozenset()
_STRICT = ("triton_grpc_error", "true")  # metadata of a stream


class Proxy:
    """What a frontend needs. held: what is held, shared with the driver. tensor_bytes_max: bytes of
    requests that may be held at once. lost: Triton did not answer. on_lone: hears the reason of
    each call that goes alone. regions: shared memory that clients have registered. recount: what
    Triton counts otherwise than clients do, in step with its counters. reservations: clients'
    streams. shield: what is not let through to Triton. families: models with variants.
    """

    def __init__(
        self,
        driver: Driver,
        backend: Backend,
        intake: Intake,
        *,
        held: Held,
        tensor_bytes_max: int,
        triton_is_up: Callable[[], bool],
        lost: Callable[[], None],
        on_lone: Callable[[str, str], None],
        regions: ClientRegions,
        recount: Recount,
        reservations: Reservations,
        shield: Shield | None = None,
        families: Families | None = None,
    ) -> None:
        self._driver = driver
        self.tallies = recount.tallies
        self._recount = recount
        self.regions = regions
        self.reservations = reservations
        self.shield = shield or Shield()
        driver.require_harmless = lambda regions: self.shield.require(Use(regions))
        self._backend = backend
        self._intake = intake
        self._signatures = Signatures()
        self._judgements: dict[tuple[str, str, bytes, str], tuple[str, int]] = {}
        self.families = families or Families()
        self._routes = Routes()
        intake.on_change = self._routes.clear
        self._models = ModelCache(backend, self.families, self._announce, self._routes.clear)
        self._held = held
        self._room = Room(held, intake, tensor_bytes_max)
        self._triton_is_up = triton_is_up
        self._lost = lost
        self._on_lone = on_lone
        self._unknown: set[asyncio.Task[None]] = set()
        self._sequences = Sequences(held)
        self._streams: dict[object, Callable[[], None]] = {}
        self.is_draining = False
        driver.is_current = self._is_current
        self.homes = Homes()
        reservations.tenant_of = intake.tenant_of
        self.on_announce: Callable[[ModelInfo], None] = lambda _: None  # hears before the scheduler

    @property
    def is_ready(self) -> bool:
        return not self.is_draining and self._triton_is_up()

    def knows(self, model: str) -> bool:
        """Whether what Triton said of some version of the model still counts."""
        return self._models.serves(model)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the requests held now."""
        return self._held.size_bytes

    def submit(self, call: InferCall, done: Done, send: Send | None = None) -> Cancel:
        """Have one call answered; `done` hears how it ended, once, maybe before this returns.

        send: does it when it is its turn; by default it is merged or forwarded.
        """
        is_easy = not self.is_draining and self._room.is_plenty(len(call.raw))
        refused = None if is_easy else self._refused(call)
        if refused is not None:
            done(refused)
            return _nothing
        route = self._routes.get((call.form, call.model, call.version, call.slo, call.tenant))
        if route is not None and call.reservation is None and send is None:
            return self._along(route, call, done)
        info = self._models.known(call.model, call.version)
        if info is None:
            return self._submit_unknown(call, done, send)
        key = None if send else sequence_of(call, info)
        if key is not None:
            begin, tenant = partial(self._begin, call), self._intake.tenant(call).name
            return self._sequences.submit(key, len(call.raw), begin, done, tenant)
        return self._drive(call, info, done, send)

    def hopeless(self, call: InferCall) -> TritonschedError | None:
        """Why a call whose tensors are still on their way need not send them: it cannot be in time,
        and is refused with that. Whatever else is wrong with it is said when it is whole.
        """
        info = self._models.known(call.model, call.version)
        if info is None or self.is_draining or call.reservation is not None:
            return None
        if sequence_of(call, info) is not None:  # its order is Triton's to judge
            return None
        try:
            request, _ = self._intake.request(call, signature=0, alone=True)
        except TritonschedError:
            return None
        return self._driver.refuse(request)

    def _begin(self, call: InferCall, done: Done, send: Send | None = None) -> Cancel:
        """To the driver. What was known may be void since the call came."""
        info = self._models.known(call.model, call.version)
        if info is None:
            return self._submit_unknown(call, done, send)
        return self._drive(call, info, done, send)

    def _along(self, route: Route, call: InferCall, done: Done) -> Cancel:
        """The way of a call like it."""
        try:
            request, clipped = self._intake.request_on(route.terms, call)
            return self._driver.submit(Job(call, route.info, request, clipped=clipped), done)
        except TritonschedError as error:
            done(error)
            return _nothing

    def _drive(self, call: InferCall, info: ModelInfo, done: Done, send: Send | None) -> Cancel:
        try:
            return self._driver.submit(self._job(call, info, send), done)
        except TritonschedError as error:
            done(error)
            return _nothing

    async def infer(self, call: InferCall) -> Answer:
        """Answer one call. Raises a leaf of TritonschedError."""
        if (refused := self._refused(call)) is not None:
            raise refused
        info = self._models.known(call.model, call.version)
        if info is None:
            return await self._infer_unknown(call)
        return await self._infer_known(call, info)

    async def _infer_known(self, call: InferCall, info: ModelInfo) -> Answer:
        key = sequence_of(call, info)
        if key is None:
            return await self._driver.infer(self._job(call, info))
        begin, tenant = partial(self._begin, call), self._intake.tenant(call).name
        submit = partial(self._sequences.submit, key, len(call.raw), begin, tenant=tenant)
        return await answered(submit)

    async def reserve(self, wish: Wish) -> Entry | Refuse:
        """Ask for a periodic stream. Raises BadReservation, UnknownReservation, or as `submit`."""
        if self.is_draining:
            raise _draining()
        info = self._models.known(wish.model, wish.version)
        if info is None:
            info = await self._models.ask(wish.model, wish.version)
        if info is None:
            raise UnknownReservation(f"Triton does not serve model '{wish.model}'")
        frame = frame_of(wish, info)
        lone, signature = self._judged(frame, info)
        if lone:
            raise BadReservation(f"such frames go alone ({lone}), and only merged ones are planned")
        rows = frame.inputs[0].shape[0]
        now = self.reservations.now()
        wanted = reservation_of(wish, rows=rows, signature=signature, now=now)
        return await self.reservations.ask(wanted)

    def is_decoupled(self, call: InferCall) -> bool | None:
        """Whether the model answers any number of times; None while nothing is known of it."""
        info = self._models.known(call.model, call.version)
        return None if info is None else info.is_decoupled

    def open_stream(self, close: Callable[[], None]) -> Callable[[], None]:
        """A stream is open until what this returns is called; `close`: the sidecar drains."""
        stream = object()
        self._streams[stream] = close
        self._held.take(0)

        def closed() -> None:
            if self._streams.pop(stream, None) is not None:
                self._held.give_back(0)

        return closed

    def drain(self) -> None:
        """Refuse what is new; streams take no more messages and end when they are answered."""
        self.is_draining = True
        for close in tuple(self._streams.values()):
            close()

    async def drained(self) -> None:
        """Wait until no accepted call is unanswered."""
        await self._held.none_left()

    def limit_tensor_bytes(self, tensor_bytes_max: int) -> None:
        """Another bound of the bytes held at once; what is held already stays."""
        self._room.bytes_max = tensor_bytes_max

    async def invalidate(self, model: str) -> None:
        """Triton loads or unloads the model, or another that an ensemble is made of."""
        self._models.forget()
        await self._recount.look()

    def reconnected(self) -> None:
        """Triton is another process now: what it said before is void."""
        self._models.forget()

    async def refresh(self) -> None:
        """One of several servers came up: what they say together may be more, or something else."""
        await self._models.refresh()

    def adopt_families(
        self, declared: Mapping[str, tuple[str, ...]], accuracies: Mapping[str, float]
    ) -> None:
        """The policy file changed: what waits for a family that is no more goes to Triton's own
        model of that name, if there is one.
        """
        if self.families.is_of(declared, accuracies):
            return
        for model in self.families.adopt(declared, accuracies):
            self._driver.drop_family(model)
        self._models.forget()

    def _refused(self, call: InferCall) -> TritonschedError | None:
        """Why no call can be taken now, whatever it is."""
        if self.is_draining:
            return _draining()
        return self._room.refused(call)

    def _job(self, call: InferCall, info: ModelInfo, send: Send | None = None) -> Job:
        """Raises BadDeadline, UnknownClass, Shielded, GuardedUse or VariantsOnly."""
        if send is not None and info.variants:
            named = ", ".join(info.variants)
            raise VariantsOnly(f"'{info.name}' has variants: infer it, or stream from {named}")
        lone, signature = self._judged(call, info)
        refs = call.refs
        names = frozenset(cut_name(ref.region) for ref in refs) if refs else _NO_NAMES
        if call.lone_reason:
            names = names | self._required(call, info)
            if send is not None and _STRICT in call.headers:
                self.shield.require(Strict())
        if names:
            self.shield.guard.require_unused(names)
        regions = self.regions.named(names) if names else NO_REGIONS
        if refs and not lone:
            lone = self.regions.lone_reason(call, info, regions)
        key = sequence_of(call, info) if lone and send is None else None
        if lone:
            self._on_lone(call.model, lone)
            self.homes.settle(call, info, key, is_stream=send is not None)
        terms = self._intake.terms(call, signature=signature, alone=bool(lone))
        asked, clipped = self._intake.request_on(terms, call)
        is_next = key is not None and not call.parameters.get("sequence_start")
        request = as_served(asked, info, is_next=is_next)
        if request is asked and not lone:
            self._routes.learn(call, Route(info, terms))
        return Job(
            call, info, request, lone,
            clipped=clipped, regions=regions, send=send, in_sequence=key is not None,
        )  # fmt: skip

    def _required(self, call: InferCall, info: ModelInfo | None) -> frozenset[str]:
        """The regions of a call whose form was not read. Raises Shielded if it may not go on."""
        asked = asked_of(call)
        self.shield.require(Document(asked.depth()))
        if call.lone_reason == "generate":
            return frozenset()  # its members are the model's own
        self.shield.require(Infer(asked, info))
        return asked.regions()

    def _submit_unknown(self, call: InferCall, done: Done, send: Send | None) -> Cancel:
        task = asyncio.get_running_loop().create_task(
            _told(partial(self._infer_unknown, call, send), done)
        )
        self._unknown.add(task)
        task.add_done_callback(self._unknown.discard)
        return task.cancel

    async def _infer_unknown(self, call: InferCall, send: Send | None = None) -> Answer:
        """A model that we have to ask Triton about; if it does not serve it, it says so itself."""
        size, tenant = len(call.raw), self._intake.tenant(call).name
        self._held.take(size, tenant)
        try:
            info = await self._ask(call)
            if info is None:
                self.shield.guard.require_unused(self._required(call, None))
                return await (self._backend.forward(call) if send is None else send(0))
        finally:
            self._held.give_back(size, tenant)
        if send is not None:
            return await self._driver.infer(self._job(call, info, send))
        return await self._infer_known(call, info)

    def _judged(self, call: InferCall, info: ModelInfo) -> tuple[str, int]:
        """Why it goes alone, or its signature; remembered for calls that differ in data alone."""
        own = self._intake.merges_with(call)
        key = (call.model, call.version, call.form, own) if call.form is not None else None
        judged = self._judgements.get(key) if key else None
        if judged is None:
            lone = lone_reason(call, info)
            judged = (lone, 0 if lone else self._signatures.of(call, own))
            if key and not any(tensor.datatype == "BYTES" for tensor in call.inputs):
                if len(self._judgements) >= JUDGEMENTS_MAX:
                    self._judgements.clear()
                self._judgements[key] = judged
        return judged

    async def _ask(self, call: InferCall) -> ModelInfo | None:
        try:
            info = await self._models.ask(call.model, call.version)
        except TritonUnavailable:
            self._lost()
            raise
        if info is None and not self._models.serves(call.model):
            self._driver.drop_model(call.model)
        return info

    def _is_current(self, info: ModelInfo) -> bool:
        known = self._models.known(info.name, info.version)
        return known is info or (known is not None and known.is_like(info))

    def _announce(self, info: ModelInfo) -> None:
        self._judgements.clear()
        if info.variants:
            self._driver.set_family(Family(info.name, info.variants))
            return
        self.on_announce(info)
        self._driver.set_variant(
            Variant(
                info.name,
                rows_max=max(1, info.max_batch_size),
                devices=info.devices,
                accuracy=info.accuracy,
                servers=info.servers,
            )
        )


async def _told(answer: Callable[[], Awaitable[Answer]], done: Done) -> None:
    """Tell `done` how it ended, whatever it is."""
    try:
        outcome: Answer | TritonschedError = await answer()
    except TritonschedError as error:
        outcome = error
    except Exception as error:
        outcome = internal(error)
    done(outcome)


def _draining() -> Draining:
    text = "the sidecar is shutting down; use another instance or try again later"
    return Draining(text, retry_after_ns=1_000_000_000)


def _nothing() -> None:
    """There is nothing to cancel."""

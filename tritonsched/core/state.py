"""What the scheduler knows at one instant: queues, variants, devices, times, tuning.

Rule: it is told facts, answers questions about them and decides nothing; it is what policies see
(SchedulerView).
"""

from array import array
from collections.abc import Mapping, Sequence

from tritonsched.core.adaptation import Adaptation
from tritonsched.core.batch import Batch
from tritonsched.core.devices import DeviceState
from tritonsched.core.fairness import Tenants
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.policy import Choice
from tritonsched.core.queues import QueueSet, RequestQueue
from tritonsched.core.request import FULL, RejectReason, Request
from tritonsched.core.servers import Servers
from tritonsched.core.serving import Place, Serving
from tritonsched.core.speed import DeviceSpeed
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import Family, ServerState, Variant, Way

AWAY_RETRY_NS = (
    1_000_000_000  # the hint when Triton is away: its restart takes seconds, not minutes
)


class State:
    """The scheduler's knowledge. `_moved`: something but time and arrivals changed since the queues
    were pruned.
    """

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.server = ServerState.READY  # of all together
        self._servers = Servers()
        self._far_ns: Mapping[str, int] = {}
        self.tenants = Tenants()
        self._queues = QueueSet()
        self._variants: dict[str, Variant] = {}  # what Triton serves
        self._families: dict[str, Family] = {}
        self._ways: dict[tuple[str, str], tuple[Way, ...]] = {}  # by model asked for and device
        self._default: dict[tuple[str, str], str] = {}
        self._adaptation = Adaptation()
        self._devices: dict[str, DeviceState] = {}
        self._profiles: dict[tuple[str, str], LatencyProfile] = {}
        self._serving = Serving()
        self._moved = False
        self._now = 0

    # -- facts --------------------------------------------------------------------------------

    def set_variant(self, variant: Variant, now: int) -> None:
        """Triton serves this model this way; replaces what was known. Learnt times are kept."""
        self._advance(now)
        self._variants[variant.model] = variant
        for name, server in variant.places():
            device = self._devices.setdefault(name, DeviceState(name))
            self._servers.know(server)
            device.server = server
            device.is_up = self._servers.is_up(server)
            device.far_ns = self._far_ns.get(server, 0)
            self._profiles.setdefault((variant.model, name), LatencyProfile())
        self._serve(variant.model)

    def set_distances(self, far_ns: Mapping[str, int], now: int) -> None:
        """How much longer than `tuning.rtt_ns` the round trip to each server is."""
        self._advance(now)
        self._moved = True
        self._far_ns = dict(far_ns)
        for device in self._devices.values():
            device.far_ns = self._far_ns.get(device.server, 0)

    def drop_model(self, model: str, now: int) -> None:
        """Triton no longer serves the model; its times are forgotten with it.

        What is queued for it is refused by the next `decide`.
        """
        self._advance(now)
        variant = self._variants.pop(model, None)
        for name in variant.devices if variant else ():
            self._profiles.pop((model, name), None)
        self._serve(model)

    def set_family(self, family: Family, now: int) -> None:
        """Clients may ask for this model, and any of its variants that Triton serves will do."""
        self._advance(now)
        self._families[family.model] = family
        self._place(family.model)

    def drop_family(self, model: str, now: int) -> None:
        """Its name means Triton's own model again, if there is one."""
        self._advance(now)
        self._families.pop(model, None)
        self._place(model)

    def set_profile(self, model: str, device: str, profile: LatencyProfile) -> None:
        """Start from measured times instead of from nothing."""
        self._profiles[model, device] = profile
        if model in self._variants:
            self._serve(model)

    # -- what policies see --------------------------------------------------------------------

    def devices(self) -> Sequence[str]:
        """All that were ever announced, in that order."""
        return [*self._devices]

    def free_ns(self, device: str) -> int:
        """When a batch sent now could start there."""
        return self._devices[device].available_ns(self._now, self.tuning.rtt_ns)

    def queues(self, device: str) -> Sequence[RequestQueue]:
        """Non-empty queues that this device can serve, in order of model name, then age."""
        state = self._devices[device]
        queues = self._queues.of_models(state.models)
        if not state.server:
            return queues
        return [queue for queue in queues if queue.server in ("", state.server)]

    def variants(self, model: str, device: str) -> Sequence[Way]:
        """Ways to serve the model there, the most valuable first; none if it does not run there."""
        return self._ways.get((model, device), ())

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        """Promised execution time; 0 while the profile is unproven."""
        return self._profile(model, device).safe_ns(rows)

    def safe_times(self, model: str, device: str, rows: int) -> "array[int]":
        """`safe_ns` of 0 to `rows` rows, or more; to be read only."""
        return self._profile(model, device).safe_times(rows)

    def rows_cap(self, model: str, device: str) -> int:
        """The model's own bound, the tuned one, and twice what was ever measured while learning."""
        variant = self._default.get((model, device), model)
        cap = self._variants[variant].rows_max
        if 0 < self.tuning.rows_cap < cap:
            cap = self.tuning.rows_cap
        learnt = 2 * self._profiles[variant, device].rows_known or 1
        return cap if cap < learnt else learnt

    # -- what others see ----------------------------------------------------------------------

    def variant(self, model: str) -> Variant | None:
        """How Triton serves the model; None if it does not."""
        return self._variants.get(model)

    def is_measured(self, model: str, device: str) -> bool:
        """Whether anything is known of the model's times on the device."""
        profile = self._profiles.get((model, device))
        return profile is not None and profile.samples > 0

    def queued(self) -> dict[str, int]:
        """Requests waiting now, by model that clients may ask for."""
        return {model: self._queues.requests_of(model) for model in self._serving}

    def tenancy(self) -> tuple[Tenants, dict[str, int]]:
        """Tenants, and the requests of each that wait; who waits for nothing is left out."""
        return self.tenants, self._queues.by_tenant()

    def speeds(self) -> dict[str, DeviceSpeed]:
        """How fast each device is just now, against its tables."""
        return {name: device.speed for name, device in self._devices.items()}

    def servers(self) -> dict[str, ServerState]:
        """Whether each server takes work."""
        return self._servers.states()

    def movable(self, batch: Batch) -> tuple[Request, ...]:
        """Members of a batch that was lost with its server which another server can take: each
        once, and none that only the lost one could run.
        """
        places = self._serving.places(batch.requests[0].model)
        if all(place.device.server == batch.server for place in places):
            return ()
        return tuple(r for r in batch.requests if not r.retry and not r.server)

    # -- leaves -------------------------------------------------------------------------------

    def _advance(self, now: int) -> None:
        assert now >= self._now, f"time went back: {now} after {self._now}"
        self._now = now

    def _is_open(self, model: str) -> bool:
        return self.server is ServerState.READY and bool(self._serving.places(model))

    def _hear_of(self, server: str, state: ServerState) -> list[str]:
        """The devices that are away now."""
        self._servers.put(server, state)
        self.server = self._servers.overall
        for device in self._devices.values():
            device.is_up = self._servers.is_up(device.server)
        self._serving.refresh()
        return [device.name for device in self._devices.values() if not device.is_up]

    def _profile(self, model: str, device: str) -> LatencyProfile:
        return self._profiles[self._default.get((model, device), model), device]

    def _exec_ns(self, batch: Batch) -> int:
        profile = self._profiles.get((batch.model, batch.device))
        return profile.exec_ns(batch.rows) if profile else batch.expected_ns

    def _serve(self, model: str) -> None:
        """What Triton serves under that name changed."""
        variant = self._variants.get(model)
        for name in variant.devices if variant else ():
            device = self._devices[name]
            self._profiles[model, name].join(device.speed)
            device.speed.set_safety(self.tuning.safety)
        self._place(model)
        for family in self._families.values():
            if model in family.variants and model != family.model:
                self._place(family.model)

    def _place(self, model: str) -> None:
        """Find anew who serves what clients ask for by that name."""
        self._moved = True
        for device in self._devices.values():
            device.models.discard(model)
            self._ways.pop((model, device.name), None)
            self._default.pop((model, device.name), None)
        places = self._places(model)
        if not places:
            self._serving.drop(model)
            return
        self._serving.put(model, places)
        for place in places:
            place.device.models.add(model)
            key = (model, place.device.name)
            ways = (*self._ways.get(key, ()), Way(place.variant, place.worth))
            self._ways[key] = tuple(sorted(ways, key=lambda way: -way.worth))
            self._default.setdefault(key, place.variant)

    def _places(self, model: str) -> list[Place]:
        """On each device the default first: the variant of that very name, or the most accurate."""
        family = self._families.get(model) or Family(model, (model,))
        served = [self._variants[name] for name in family.variants if name in self._variants]
        served.sort(key=lambda variant: (variant.model != model, -variant.accuracy))
        best = max((variant.accuracy for variant in served), default=1.0)
        return [
            Place(
                self._devices[device],
                self._profiles[variant.model, device],
                variant.model,
                variant.accuracy / best,
            )
            for variant in served
            for device in variant.devices
        ]

    def _way(self, asked: str, variant: str, device: str) -> Way:
        """How a batch of requests for `asked` runs there as `variant`; by default as `asked`."""
        if variant == asked:
            variant = self._default[asked, device]
        return next(way for way in self._ways[asked, device] if way.model == variant)

    def _runs(self, choice: Choice, device: str) -> str:
        """The model that a choice runs as: another one while its category pays back an overrun."""
        first = choice.requests[0]
        if not choice.adapts or choice.variant:
            return choice.runs
        ladder = self._ladder(first.model, device)
        rung = self._adaptation.rung((first.model, first.signature), len(ladder))
        rows = sum(request.rows for request in choice.requests)
        fits = rung and rows <= self._variants[ladder[rung]].rows_max
        return ladder[rung] if fits else choice.runs

    def _adapt(self, batch: Batch, measured_ns: int, now: int) -> None:
        """A batch took that long: does its category step down, or pay back?"""
        first = batch.requests[0]
        ladder = self._ladder(first.model, batch.device)
        if len(ladder) < 2 or batch.model not in ladder:
            return
        promised_ns = [self.safe_ns(model, batch.device, batch.rows) for model in ladder]
        if all(promised_ns):
            self._adaptation.observe(
                (first.model, first.signature),
                promised_ns=promised_ns,
                used=ladder.index(batch.model),
                measured_ns=measured_ns,
                hold_ns=min(r.due_ns - r.arrival_ns for r in batch.requests) // 2,
                now=now,
            )

    def _ladder(self, asked: str, device: str) -> tuple[str, ...]:
        """The default variant there, then those worth less, the most valuable first."""
        ways = self._ways.get((asked, device), ())
        if len(ways) < 2:
            return tuple([way.model for way in ways])
        first = next(way for way in ways if way.model == self._default[asked, device])
        return (first.model, *(way.model for way in ways if way.worth < first.worth))

    def _retry_after_ns(self, model: str, reason: RejectReason) -> int | None:
        """From the model of the queue: the time to serve what is waiting now."""
        if reason is RejectReason.DEADLINE_UNREACHABLE:
            return None
        if reason not in FULL:
            return AWAY_RETRY_NS
        device, profile = self._serving.pairs(model)[0]
        cap = self.rows_cap(model, device.name)
        rows = sum(queue.rows for queue in self._queues.of_model(model))
        return max(1, -(-rows // cap)) * max(1_000_000, profile.exec_ns(cap))

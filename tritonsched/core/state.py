"""What the scheduler knows at one instant: queues, variants, devices, times, tuning.

Rule: it answers questions about that and decides nothing; it is what policies see (SchedulerView).
"""

from collections.abc import Sequence

from tritonsched.core.batch import Batch
from tritonsched.core.devices import DeviceState
from tritonsched.core.latency import LatencyProfile
from tritonsched.core.queues import QueueSet, RequestQueue
from tritonsched.core.request import RejectReason
from tritonsched.core.serving import Serving
from tritonsched.core.speed import DeviceSpeed
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant

AWAY_RETRY_NS = (
    1_000_000_000  # the hint when Triton is away: its restart takes seconds, not minutes
)


class State:
    """The scheduler's knowledge. `_moved`: something but time and arrivals changed since the queues
    were pruned.
    """

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        self.server = ServerState.READY
        self._queues = QueueSet()
        self._variants: dict[str, Variant] = {}
        self._devices: dict[str, DeviceState] = {}
        self._profiles: dict[tuple[str, str], LatencyProfile] = {}
        self._serving = Serving()
        self._moved = False

    def queues(self, device: str) -> Sequence[RequestQueue]:
        """Non-empty queues that this device can serve, in order of model name, then age."""
        return self._queues.of_models(self._devices[device].models)

    def safe_ns(self, model: str, device: str, rows: int) -> int:
        """Promised execution time; 0 while the profile is unproven."""
        return self._profiles[model, device].safe_ns(rows)

    def rows_cap(self, model: str, device: str) -> int:
        """The model's own bound, the tuned one, and twice what was ever measured while learning."""
        cap = self._variants[model].rows_max
        if self.tuning.rows_cap:
            cap = min(cap, self.tuning.rows_cap)
        return min(cap, max(1, 2 * self._profiles[model, device].rows_known))

    def variant(self, model: str) -> Variant | None:
        """How Triton serves the model; None if it does not."""
        return self._variants.get(model)

    def is_measured(self, model: str, device: str) -> bool:
        """Whether anything is known of the model's times on the device."""
        profile = self._profiles.get((model, device))
        return profile is not None and profile.samples > 0

    def queued(self) -> dict[str, int]:
        """Requests waiting now, by model that Triton serves."""
        return {model: self._queues.requests_of(model) for model in self._variants}

    def speeds(self) -> dict[str, DeviceSpeed]:
        """How fast each device is just now, against its tables."""
        return {name: device.speed for name, device in self._devices.items()}

    def _exec_ns(self, batch: Batch) -> int:
        profile = self._profiles.get((batch.model, batch.device))
        return profile.exec_ns(batch.rows) if profile else batch.expected_ns

    def _serve(self, variant: Variant) -> None:
        self._moved = True
        pairs = [(self._devices[d], self._profiles[variant.model, d]) for d in variant.devices]
        for device, profile in pairs:
            profile.join(device.speed)
            device.speed.set_safety(self.tuning.safety)
        self._serving.put(variant.model, tuple(pairs))

    def _retry_after_ns(self, model: str, reason: RejectReason) -> int | None:
        """From the model of the queue: the time to serve what is waiting now."""
        if reason is RejectReason.DEADLINE_UNREACHABLE:
            return None
        if reason is not RejectReason.QUEUE_FULL:
            return AWAY_RETRY_NS
        device = self._variants[model].devices[0]
        cap = self.rows_cap(model, device)
        rows = sum(queue.rows for queue in self._queues.of_model(model))
        return max(1, -(-rows // cap)) * max(1_000_000, self._profiles[model, device].exec_ns(cap))

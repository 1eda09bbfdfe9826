"""What runs on each device and when it will be free. Rule: at most one batch running, one sent
ahead.

Times are as the sidecar sees them: a batch ends when its answer is back. An idle device therefore
adds `rtt_ns` to a batch; one that is handed over just in time does not.
"""

from collections.abc import Callable

from tritonsched.core.batch import Batch, Completion
from tritonsched.core.speed import DeviceSpeed

BATCHES_MAX = 2  # one running, one on its way


class DeviceState:
    """The batches on one device, in the order they were sent. is_up: so is its server.
    is_learning: the last one's time is a guess, and with it the predicted end. far_ns: its round
    trip beyond `tuning.rtt_ns`.
    """

    __slots__ = (
        "_started_ns", "batches", "far_ns", "is_learning", "is_up", "models", "name",
        "predicted_end_ns", "server", "speed",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.server = ""
        self.is_up = True
        self.far_ns = 0
        self.models: set[str] = set()
        self.batches: list[Batch] = []
        self.speed = DeviceSpeed()
        self.predicted_end_ns = 0
        self._started_ns = 0  # when the first of `batches` had the device to itself
        self.is_learning = False

    def has_room(self, now: int, lead_ns: int) -> bool:
        """Idle, or the one running batch ends within the lead. A guess of its end is not enough.
        None if its server is away.
        """
        if not self.is_up:
            return False
        if not self.batches:
            return True
        if len(self.batches) >= BATCHES_MAX or self.is_learning:
            return False
        return self.predicted_end_ns - now <= lead_ns + self.far_ns

    def available_ns(self, now: int, rtt_ns: int) -> int:
        """When a batch sent now can start."""
        there_ns = now + rtt_ns + self.far_ns
        return max(there_ns, self.predicted_end_ns) if self.batches else there_ns

    def start(self, batch: Batch, *, proven: bool) -> None:
        """The batch was sent. proven: its end is known well enough to send another one ahead."""
        self.is_learning = not proven
        self.batches.append(batch)
        if len(self.batches) == 1:
            self._started_ns = batch.expected_start_ns
        self.predicted_end_ns = batch.expected_end_ns

    def finish(self, batch: Batch, completion: Completion, now: int, rtt_ns: int) -> int:
        """The batch is back; returns the time it had the device, in ns.

        Time in which the device waited for a message that was sent late is not the batch's: else
        the next one would be planned for that late, too, and sent no earlier.
        Answers normally come in order; one that overtakes (a failure) leaves the others' start
        alone.
        """
        rtt_ns += self.far_ns
        first = self.batches[0] is batch
        self.batches.remove(batch)
        sent_ns = batch.dispatch_ns if completion.sent_ns is None else completion.sent_ns
        back_ns = now if completion.returned_ns is None else completion.returned_ns
        start_ns = sent_ns + rtt_ns
        if first:
            start_ns = max(start_ns, self._started_ns)
            if self.batches:
                self._started_ns = max(back_ns, self.batches[0].dispatch_ns + rtt_ns)
        return max(0, back_ns - start_ns)

    def predict(self, exec_ns: Callable[[Batch], int], now: int) -> None:
        """Correct the predicted end by what was just learnt, else drift queues batches in
        Triton.
        """
        end_ns = self._started_ns
        for batch in self.batches:
            end_ns = max(now, end_ns + exec_ns(batch))
        if self.batches:
            self.predicted_end_ns = end_ns

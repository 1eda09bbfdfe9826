"""A call between the proxy's door and Triton. Rule: records, without a will of their own."""

from types import MappingProxyType

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.core.batch import Batch
from tritonsched.core.request import Request
from tritonsched.proxy.client_regions import Regions
from tritonsched.tensors import Done, InferCall, Send

NO_REGIONS: Regions = MappingProxyType({})


class Job:
    """A call on its way through the scheduler.

    lone: why it goes alone, empty if it may be merged. clipped: its deadline was cut to its class'.
    regions: the clients' shared memory that it reads or writes when it is merged. send: does what
    is to be done when it is its turn, given how long that is expected to take; None: its bytes are
    forwarded. in_sequence: it has its device for a bound at most (proxy/streaming.py).
    done: hears how it ended. writes: `done` writes the reply before it returns.
    """

    __slots__ = (
        "call", "clipped", "done", "in_sequence", "info", "lone", "regions", "request", "send",
        "writes",
    )  # fmt: skip

    def __init__(
        self,
        call: InferCall,
        info: ModelInfo,
        request: Request,
        lone: str = "",
        *,
        clipped: bool = False,
        regions: Regions = NO_REGIONS,
        send: Send | None = None,
        in_sequence: bool = False,
    ) -> None:
        self.call = call
        self.info = info
        self.request = request
        self.lone = lone
        self.clipped = clipped
        self.regions = regions
        self.send = send
        self.in_sequence = in_sequence
        self.done: Done | None = None
        self.writes = True

    def again(self, request: Request, lone: str) -> "Job":
        """The same, to be sent once more."""
        made = Job(
            self.call, self.info, request, lone or self.lone,
            clipped=self.clipped, regions=self.regions, send=self.send,
            in_sequence=self.in_sequence,
        )  # fmt: skip
        made.done, made.writes = self.done, self.writes
        return made


class Flight:
    """A batch that is out. sent_ns: when its message was written."""

    __slots__ = ("batch", "jobs", "sent_ns")

    def __init__(self, batch: Batch, jobs: list[Job], sent_ns: int) -> None:
        self.batch = batch
        self.jobs = jobs
        self.sent_ns = sent_ns

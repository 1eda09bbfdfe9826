"""A call between the proxy's door and Triton. Rule: records, without a will of their own."""

from dataclasses import dataclass, field

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.core.batch import Batch
from tritonsched.core.request import Request
from tritonsched.proxy.client_regions import Regions
from tritonsched.tensors import Done, InferCall, Send


@dataclass(slots=True)  # not frozen: that triples the cost of making one
class Job:
    """A call on its way through the scheduler.

    lone: why it goes alone, empty if it may be merged. clipped: its deadline was cut to its class'.
    regions: the clients' shared memory that it reads or writes when it is merged. send: does what
    is to be done when it is its turn, given how long that is expected to take; None: its bytes are
    forwarded. in_sequence: it has its device for a bound at most (proxy/streaming.py).
    done: hears how it ended. writes: `done` writes the reply before it returns.
    """

    call: InferCall
    info: ModelInfo
    request: Request
    lone: str = ""
    clipped: bool = False
    regions: Regions = field(default_factory=dict)
    send: Send | None = None
    in_sequence: bool = False
    done: Done | None = None
    writes: bool = True


@dataclass(slots=True)
class Flight:
    """A batch that is out. sent_ns: when its message was written."""

    batch: Batch
    jobs: list[Job]
    sent_ns: int

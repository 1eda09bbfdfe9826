"""What an answer says of its batch: was it executed, why did it come when it did? Rule: pure."""

from typing import TYPE_CHECKING

from tritonsched.core.batch import Batch
from tritonsched.tensors import Answer, Explain, GrpcReply, HttpReply

if TYPE_CHECKING:
    from tritonsched.proxy.job import Job

_OK_BELOW = 400


def is_ok(answer: Answer) -> bool:
    """Whether the model was executed, so that its time teaches the profile."""
    match answer:
        case HttpReply():
            return answer.status < _OK_BELOW
        case GrpcReply():
            return answer.code == "OK"
        case _:
            return True


def explain(batch: Batch, job: "Job", now: int) -> Explain:
    """Why this answer came when it did."""
    request = job.request
    return Explain(
        queue_ns=batch.dispatch_ns - request.arrival_ns,
        batch_rows=batch.rows,
        batch_requests=len(batch.requests),
        variant=batch.model,
        slack_ns=request.deadline_ns - now if request.has_deadline else None,
        lone=job.lone,
        clipped=job.clipped,
    )

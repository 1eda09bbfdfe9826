"""A refusal in words. Rule: what, which, what to do; the reason itself is the error's class."""

from typing import assert_never

from tritonsched import errors
from tritonsched.core.request import RejectReason, Request

LATER = "try again later"


def refusal_error(
    request: Request, reason: RejectReason, retry_after_ns: int | None, now: int
) -> errors.TritonschedError:
    """The error a refusal becomes; its text says what, which, what to do."""
    model = f"model '{request.model}'"
    match reason:
        case RejectReason.DEADLINE_UNREACHABLE:
            left_ms = (request.deadline_ns - now) / 1e6
            text = f"{model}: cannot be answered in the {left_ms:.1f} ms left; allow more time"
            return errors.DeadlineUnreachable(text)
        case RejectReason.QUEUE_FULL:
            text = f"{model}: its queue is full; try again later"
            return errors.QueueFull(text, retry_after_ns=retry_after_ns)
        case RejectReason.TENANT_QUEUE_FULL:
            text = f"{model}: as many requests of tenant '{request.tenant}' wait as may"
            return errors.TenantQueueFull(f"{text}; {LATER}", retry_after_ns=retry_after_ns)
        case RejectReason.TENANT_OVER_SHARE:
            text = f"{model}: its queue is full, and tenant '{request.tenant}' has its share"
            return errors.TenantOverShare(f"{text}; {LATER}", retry_after_ns=retry_after_ns)
        case RejectReason.DRAINING:
            text = "the sidecar is shutting down; use another instance or try again later"
            return errors.Draining(text, retry_after_ns=retry_after_ns)
        case RejectReason.TRITON_UNAVAILABLE:
            text = "Triton is not answering; try again later"
            return errors.TritonUnavailable(text, retry_after_ns=retry_after_ns)
        case _:
            assert_never(reason)

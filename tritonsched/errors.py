"""The error tree. Each leaf knows the status it becomes on either wire and its machine-readable
reason.

Rule: an error is translated once, at the boundary that answers the client (frontend); nothing in
between looks at status codes. `grpc_code` is the *name* of a gRPC status so that nothing below
needs grpc.
Source: the status table of DESIGN.md; reasons are part of the public interface (README,
"Refusals").
"""

from typing import ClassVar


class TritonschedError(Exception):
    """Base of all errors that this package raises on purpose.

    retry_after_ns: when trying again makes sense, in nanoseconds from now; None where it does not.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "internal"

    def __init__(self, message: str, *, retry_after_ns: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_ns = retry_after_ns


class ClientError(TritonschedError):
    """The request itself is at fault."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"
    reason = "bad-request"


class BadDeadline(ClientError):
    """A deadline that is not a number of milliseconds or microseconds in range."""

    reason = "bad-deadline"


class UnknownClass(ClientError):
    """`x-tritonsched-class` names a class that the policy file does not have."""

    reason = "unknown-class"


class BadReservation(ClientError):
    """What is to be reserved is no stream, or one whose frames cannot share batches."""

    reason = "bad-reservation"


class VariantsOnly(ClientError):
    """A stream, or `generate`, on a model with variants: it takes one of them by name."""

    reason = "variants-only"


class UnknownReservation(ClientError):
    """There is no reservation of this name, or of this model."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    reason = "unknown-reservation"


class PayloadTooLarge(ClientError):
    """The body or message is over `limits.request_bytes_max`."""

    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"
    reason = "payload-too-large"


class RequestTimeout(ClientError):
    """The request did not come whole in time."""

    http_status = 408
    grpc_code = "DEADLINE_EXCEEDED"
    reason = "request-timeout"


class GuardedName(ClientError):
    """A shared-memory region that belongs to the sidecar or to Triton itself."""

    reason = "guarded-name"


class GuardedUse(GuardedName):
    """A request that would read or write such a region: answered as Triton does an unknown one."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class Shielded(ClientError):
    """The request would end this Triton, or have it read foreign memory."""

    reason = "shielded"


class ShieldedLoad(Shielded):
    """Loading so would end this Triton. The status is that of releases which bear it."""

    http_status = 500
    grpc_code = "INTERNAL"


class DeadlineError(TritonschedError):
    """The answer cannot be, or was not, in time."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"
    reason = "deadline-unreachable"


class DeadlineUnreachable(DeadlineError):
    """Refused early: even alone and next, the request would be late."""


class DeadlineExpired(DeadlineError):
    """The deadline passed while the request was waiting."""

    reason = "deadline-expired"


class Overloaded(TritonschedError):
    """There is no room; trying again later makes sense."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    reason = "overloaded"


class QueueFull(Overloaded):
    """The model's queue is at `limits.queue_requests_max`."""

    reason = "queue-full"


class TenantQueueFull(Overloaded):
    """The tenant's own `queue_requests_max` wait for the model."""

    reason = "tenant-queue-full"


class TenantOverShare(Overloaded):
    """There is no room, and the tenant has what its share guarantees it."""

    reason = "tenant-over-share"


class MemoryFull(Overloaded):
    """The tensors in flight are at `limits.tensor_bytes_max`."""

    reason = "memory-full"


class Unavailable(TritonschedError):
    """The sidecar or Triton cannot serve at present."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    reason = "unavailable"


class Draining(Unavailable):
    """The sidecar is shutting down and takes no new requests."""

    reason = "draining"


class TritonUnavailable(Unavailable):
    """Triton does not answer, or the connection broke while it held the request."""

    reason = "triton-unavailable"


class BackendError(TritonschedError):
    """Triton took the batch and failed it; `grpc_code_name` is what Triton said."""

    reason = "backend-error"

    def __init__(self, message: str, *, grpc_code_name: str = "INTERNAL") -> None:
        super().__init__(message)
        self.grpc_code_name = grpc_code_name


class MalformedAnswer(BackendError):
    """Triton's answer does not have the rows, shape or bytes that the request asks for."""

    reason = "backend-malformed"


class RegionFault(BackendError):
    """A client's shared-memory region is not what it was when it was registered, or too small."""

    reason = "region-fault"


class CudaFault(BackendError):
    """CUDA refused or failed a call; what needed it goes another way."""

    reason = "cuda-fault"


class ConfigError(TritonschedError):
    """A policy file or an option that cannot be used; the text holds one `file:line:col: …` a
    fault.
    """

    reason = "bad-config"


class StartupError(TritonschedError):
    """The sidecar cannot start: a port in use, no shared memory, no Triton."""

    reason = "startup"

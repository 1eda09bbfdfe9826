"""One mapping of errors a wire. Rule: translated once, here; reasons are machine-readable.

HTTP: the v2 error body `{"error": …}`, `x-tritonsched-reason`, and `Retry-After` (whole seconds,
as RFC 9110 wants) with `retry-after-ms` beside it. gRPC: status and details, the same keys as
trailing metadata, and google.rpc.RetryInfo in `grpc-status-details-bin`.
"""

import grpc
import orjson
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tritonsched.errors import TritonschedError
from tritonsched.tensors import HttpReply

REASON = "x-tritonsched-reason"
EXPLAIN = "x-tritonsched-explain"
VARIANT_PARAMETER = "tritonsched_variant"  # of a merged answer
RETRY_MS = "retry-after-ms"
_SECOND_NS = 1_000_000_000
_log = structlog.get_logger()

Trailers = tuple[tuple[str, str | bytes], ...]


def known(error: Exception) -> TritonschedError:
    """The error as one of ours. Anything else is our own fault: logged, told without its
    insides.
    """
    if isinstance(error, TritonschedError):
        return error
    _log.error("internal error", exc_info=error)
    return TritonschedError(f"internal error ({type(error).__name__}); see the sidecar's log")


def http_reply(error: Exception) -> HttpReply:
    """The HTTP answer that an error becomes."""
    ours = known(error)
    headers = [("Content-Type", "application/json"), (REASON, ours.reason)]
    if ours.retry_after_ns is not None:
        seconds = max(1, -(-ours.retry_after_ns // _SECOND_NS))
        headers += [("Retry-After", str(seconds)), (RETRY_MS, _retry_ms(ours.retry_after_ns))]
    return HttpReply(ours.http_status, "", tuple(headers), orjson.dumps({"error": str(ours)}))


def grpc_status(error: Exception) -> tuple[grpc.StatusCode, str, Trailers]:
    """Code, details and trailing metadata that an error becomes."""
    ours = known(error)
    code = grpc.StatusCode[ours.grpc_code]
    trailers: list[tuple[str, str | bytes]] = [(REASON, ours.reason)]
    if ours.retry_after_ns is not None:
        trailers.append((RETRY_MS, _retry_ms(ours.retry_after_ns)))
        trailers.append(("grpc-status-details-bin", _details(code, ours)))
    return code, str(ours), tuple(trailers)


def _retry_ms(ns: int) -> str:
    return str(max(1, -(-ns // 1_000_000)))


def _details(code: grpc.StatusCode, error: TritonschedError) -> bytes:
    seconds, nanos = divmod(error.retry_after_ns or 0, _SECOND_NS)
    packed = AnyMessage()
    packed.Pack(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))
    number: int = code.value[0]
    status = Status(code=number, message=str(error), details=[packed])
    serialized: bytes = status.SerializeToString()
    return serialized

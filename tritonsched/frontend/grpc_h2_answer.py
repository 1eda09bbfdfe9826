"""How a gRPC call ends, as headers. Rule: pure; a status is trailers, whatever it says.

Source: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md), "Responses".
"""

from tritonsched.backend.upstream_grpc import Metadata
from tritonsched.backend.upstream_h2 import CODE_NUMBERS, encode_header, escape
from tritonsched.errors import TritonschedError
from tritonsched.frontend import grpc_methods
from tritonsched.http2 import Headers
from tritonsched.tensors import Answer, GrpcReply, InferCall

OK_HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK_END = ((b"grpc-status", b"0"),)
NO_GRPC = ((b":status", b"415"),)  # what the protocol asks for
_CLIENT_CODINGS = (b"grpc-accept-encoding", b"identity,deflate,gzip")


def answer_head(metadata: Metadata) -> Headers:
    """Before an answer's message."""
    return (*OK_HEAD, _CLIENT_CODINGS, *map(encode_header, metadata))


def trailers_of(reply: GrpcReply) -> Headers:
    """Its status, and what was sent with it."""
    status = (b"grpc-status", CODE_NUMBERS[reply.code])
    more = map(encode_header, grpc_methods.trailers_of(reply))
    if not reply.details:
        return (status, *more)
    return (status, (b"grpc-message", escape(reply.details)), *more)


def reply_of(outcome: Answer | TritonschedError, made: InferCall) -> GrpcReply:
    """Any end of an inference as a gRPC answer."""
    if isinstance(outcome, TritonschedError):
        return grpc_methods.error_reply(outcome)
    return grpc_methods.as_grpc(outcome, made)

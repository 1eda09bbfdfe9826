"""The rules of comparison, all of them. Rule: an answer is the same or it is a difference; what is
not looked at, or may differ, is written here and in DESIGN.md ("Fidelity") with its reason.

Not looked at: the order of HTTP headers (RFC 9110 5.3); the order of a map's members in a gRPC
message, which protobuf leaves open; how hard a compressed body was pressed; of statistics
all but the models, because the numbers count the other side's calls, too.

May differ (a case names its rule in `may_differ`, and then both must do what the rule says):

| rule          | Triton                             | the sidecar, and why                        |
|---------------|------------------------------------|---------------------------------------------|
| `not-http`    | closes without a word              | 400, then closes: a client can read why     |
| `strict`      | reads on                           | 400, then closes: who guesses where a       |
|               |                                    | request ends can be smuggled into           |
| `lenient`     | closes, or waits for more; it is   | answers: it is valid HTTP/1.1               |
|               | not asked                          |                                             |
| `head`        | answers HEAD with a body           | the same without: no client can read on     |
| `too-long`    | resets the connection              | 413, then closes                            |
| `half-closed` | answers                            | the same, maybe after an interim 100 that   |
|               |                                    | finds out whether the client is still there |
| `not-utf-8`   | hears header bytes as they are     | sends the UTF-8 of their Latin-1, which     |
|               |                                    | shows where an answer repeats them          |
"""

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tests.differential.wire import GrpcAsk, GrpcOutcome, HttpOutcome, HttpReply

_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}
_RESPONSES = {
    name: getattr(pb, f"{name}Response")
    for name in (
        "ModelInfer", "ModelStreamInfer", "ModelMetadata", "ModelConfig", "RepositoryIndex",
        "LogSettings", "TraceSetting", "SystemSharedMemoryStatus", "ModelStatistics",
    )
}  # fmt: skip


NOT_ASKED = HttpOutcome((), is_open=False)


def http_difference(theirs: HttpOutcome, mine: HttpOutcome, rule: str = "") -> str:
    """Empty if they are the same to a client, or differ as the rule says."""
    if rule:
        kept = _HTTP_RULES[rule](theirs, mine)
        return "" if kept else f"not as `{rule}` says: {_both(theirs, mine)}"
    a, b = _plain(theirs), _plain(mine)
    return "" if a == b else _both(a, b)


def _both(theirs: object, mine: object) -> str:
    return f"\n  Triton:  {str(theirs)[:1500]}\n  sidecar: {str(mine)[:1500]}"


def _plain(outcome: HttpOutcome) -> HttpOutcome:
    return replace(outcome, replies=tuple(_decoded(reply) for reply in outcome.replies))


def _decoded(reply: HttpReply) -> HttpReply:
    """Without the compression, of which only the fact is compared."""
    decode = _DECODERS.get(reply.header("content-encoding"))
    if b'"inference_stats"' in reply.body:
        models = json.loads(reply.body)["model_stats"]
        return HttpReply(reply.start, (), str([_form(model) for model in models]).encode())
    if decode is None:
        return reply
    headers = tuple(pair for pair in reply.headers if pair[0] != "content-length")
    return replace(reply, headers=headers, body=decode(reply.body))


def _form(model: dict[str, Any]) -> tuple[Any, ...]:
    """Of a model's statistics: which it is, and the members in their order."""
    return model["name"], model["version"], list(model), list(model["inference_stats"])


def _says(outcome: HttpOutcome, status: str) -> bool:
    """One answer of this status, then the end."""
    starts = [reply.start.split(" ")[1] for reply in outcome.replies]
    return starts == [status] and not outcome.is_open


def _is_silent(outcome: HttpOutcome) -> bool:
    return not outcome.replies and not outcome.is_open


def _as_latin(body: bytes) -> bytes:
    """The bytes of which this is the UTF-8, if it is."""
    try:
        return body.decode().encode("latin-1")
    except UnicodeError:
        return body


_HTTP_RULES: dict[str, Callable[[HttpOutcome, HttpOutcome], bool]] = {
    "not-http": lambda theirs, mine: _is_silent(theirs) and _says(mine, "400"),
    "strict": lambda theirs, mine: not _is_silent(theirs) and _says(mine, "400"),
    "lenient": lambda _, mine: bool(mine.replies),
    "head": lambda theirs, mine: (
        theirs.replies[0].start == mine.replies[0].start and not mine.replies[0].body
    ),
    "half-closed": lambda theirs, mine: theirs.replies[-1:] == mine.replies[-1:],
    "not-utf-8": lambda theirs, mine: (
        [(reply.start, reply.body) for reply in theirs.replies]
        == [(reply.start, _as_latin(reply.body)) for reply in mine.replies]
    ),
    "too-long": lambda theirs, mine: _is_silent(theirs) and _says(mine, "413"),
}


def grpc_difference(ask: GrpcAsk, theirs: GrpcOutcome, mine: GrpcOutcome) -> str:
    """Empty if they are the same to a client."""
    a, b = _read(ask, theirs), _read(ask, mine)
    return "" if a == b else _both(a, b)


def _read(ask: GrpcAsk, outcome: GrpcOutcome) -> tuple[Any, ...]:
    kind = _RESPONSES.get(ask.method)
    read: Callable[[bytes], Any] = kind.FromString if kind is not None else bytes
    messages: list[Any] = [read(message) for message in outcome.messages]
    sizes = [len(message) for message in outcome.messages]
    if ask.method == "ModelStatistics":
        return outcome.code, outcome.details, [_models(message) for message in messages]
    return outcome.code, outcome.details, messages, sizes, outcome.metadata


def _models(statistics: Any) -> list[tuple[str, str]]:
    return [(model.name, model.version) for model in statistics.model_stats]

"""Models that clients ask for and several Triton models serve, as the policy file declares them.

Rule: pure. A family is one form for its clients: variants whose inputs or outputs differ from the
first one's, or that keep an order or answer more than once, do not belong to it, and it is said
which and why. Its version is `VERSION`, whatever its variants' are.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.tensors import Answer, GrpcReply, HttpReply, InferCall, MergedReply, Pieces, Wire

VERSION = "1"
_VERSIONS = ("", VERSION)
_ORDERED = ("sequence", "decoupled")
_MODEL_PATH = re.compile(r"^/v2/models/[^/?]+(?:/versions/[0-9]+)?")
_NAMED = re.compile(rb'"model_name":"(?:[^"\\]|\\.)*","model_version":"[^"]*"')
_NEWEST = b"\x12\x00"  # an empty model_version, field 2 of a gRPC request
_OK = 200
HEAD_LENGTH = "inference-header-content-length"
HEAD_BYTES_MAX = 4096  # of an answer: Triton writes the name before anything that is long
VARIANT = "x-tritonsched-variant"

Declared = Mapping[str, tuple[str, ...]]


class Families:
    """What the policy file declares. accuracies: by Triton model, where Triton is not to say it."""

    def __init__(
        self, declared: Declared | None = None, accuracies: Mapping[str, float] | None = None
    ) -> None:
        self._declared: Declared = {}
        self._accuracies: Mapping[str, float] = {}
        self.adopt(declared or {}, accuracies or {})

    def is_of(self, declared: Declared, accuracies: Mapping[str, float]) -> bool:
        """Nothing else is declared already."""
        return (self._declared, self._accuracies) == (dict(declared), dict(accuracies))

    def adopt(self, declared: Declared, accuracies: Mapping[str, float]) -> set[str]:
        """The policy file changed; returns the families that are no more."""
        gone = set(self._declared) - set(declared)
        self._declared = dict(declared)
        self._accuracies = dict(accuracies)
        return gone

    @property
    def models(self) -> tuple[str, ...]:
        """The models that have variants, in the file's order."""
        return tuple(self._declared)

    def variants(self, model: str) -> tuple[str, ...]:
        """The Triton models that are to serve it, in the file's order; empty if it is no family."""
        return self._declared.get(model, ())

    def valued(self, info: ModelInfo) -> ModelInfo:
        """With the accuracy that the policy file gives it."""
        given = self._accuracies.get(info.name)
        return info if given is None else replace(info, accuracy=given)


def is_version(version: str) -> bool:
    """Whether a family has that version, as a client names it."""
    return version in _VERSIONS


def combined(
    model: str, version: str, infos: Sequence[ModelInfo]
) -> tuple[ModelInfo | None, list[str]]:
    """The family as its clients see it, and why some variants do not belong to it.

    infos: of the variants that Triton serves, in the file's order. None if none is left.
    """
    kept: list[ModelInfo] = []
    faults: list[str] = []
    for info in infos:
        why = _misfit(info, kept[0] if kept else info)
        if why:
            faults.append(f"model '{model}': variant '{info.name}' {why}")
        else:
            kept.append(info)
    if not kept:
        return None, faults
    devices = dict.fromkeys(device for info in kept for device in info.devices)
    found = replace(
        kept[0],
        name=model,
        version=version,
        max_batch_size=max(info.max_batch_size for info in kept),
        devices=tuple(devices),
        lone_reason=next((info.lone_reason for info in kept if info.lone_reason), ""),
        accuracy=max(info.accuracy for info in kept),
        variants=tuple(info.name for info in kept),
        config_sha256="",
    )
    return found, faults


def _misfit(info: ModelInfo, first: ModelInfo) -> str:
    if info.lone_reason in _ORDERED or info.is_decoupled:
        return "keeps an order or answers more than once, so no other can stand in for it"
    for kind in ("inputs", "outputs"):
        if getattr(info, kind) != getattr(first, kind):
            return f"has other {kind} than '{first.name}'"
    return ""


# -- calls that go alone, as original bytes ---------------------------------------------------


def addressed(call: InferCall, variant: str) -> InferCall:
    """The call as its client sent it, but to that Triton model, in its newest version. Its answer
    is not to be compressed: the model's name in it is to be changed.
    """
    if call.wire is Wire.HTTP:
        path = _MODEL_PATH.sub(f"/v2/models/{variant}".replace("\\", "\\\\"), call.path, count=1)
        kept = tuple(pair for pair in call.headers if pair[0].lower() != "accept-encoding")
        return replace(call, model=variant, version="", path=path, headers=kept)
    # Of a field that comes twice the last one counts (protobuf encoding, "Last One Wins").
    named = pb.ModelInferRequest(model_name=variant).SerializeToString()
    parts = call.raw.parts if isinstance(call.raw, Pieces) else (call.raw,)
    raw = b"".join((*parts, named, _NEWEST))
    return replace(call, model=variant, version="", raw=raw)


def told(answer: Answer, model: str, variant: str) -> Answer:
    """Triton's answer with the name that the client asked for, and who it was beside it."""
    match answer:
        case GrpcReply(code="OK"):
            named = pb.ModelInferResponse(model_name=model, model_version=VERSION)
            message = b"".join((answer.message, named.SerializeToString()))
            trailers = (*answer.trailing_metadata, (VARIANT, variant))
            return replace(answer, message=message, trailing_metadata=trailers)
        case HttpReply(status=status) if status == _OK:
            return _renamed(answer, model, variant)
        case GrpcReply() | HttpReply() | MergedReply():
            return answer


def _renamed(answer: HttpReply, model: str, variant: str) -> HttpReply:
    """The JSON head is Triton's own writing; what cannot be read keeps the variant's name."""
    headers = (*answer.headers, (VARIANT, variant))
    named = f'"model_name":"{model}","model_version":"{VERSION}"'.encode()
    found = _NAMED.search(bytes(answer.body[:HEAD_BYTES_MAX]))
    if found is None:
        return replace(answer, headers=headers)
    body = b"".join((answer.body[: found.start()], named, answer.body[found.end() :]))
    grown = len(named) - (found.end() - found.start())
    lengths = {HEAD_LENGTH, "content-length"}
    moved = [(k, str(int(v) + grown)) if k.lower() in lengths else (k, v) for k, v in headers]
    return replace(answer, headers=tuple(moved), body=body)

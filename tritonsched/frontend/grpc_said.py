"""What a gRPC call's metadata say to us. Rule: read once; the same come with every call of a steady
client.
"""

from typing import NamedTuple

from tritonsched.frontend.grpc_codec import Metadata

SAID_MAX = 1024  # metadata remembered
SAID_BYTES_MAX = 4096  # longer ones are read each time
_LOAD_METRICS = "endpoint-load-metrics-format"  # such a call goes alone
_DEADLINE_MS, _ENVOY_MS = "x-request-deadline-ms", "x-envoy-expected-rq-timeout-ms"


class Said(NamedTuple):
    """is_timed: something about time, too. is_odd: such a call is read carefully."""

    slo: str | None
    explain: bool
    reservation: str | None
    tenant: str | None
    deadline_ms: str | None
    envoy_ms: str | None
    is_timed: bool
    is_odd: bool


_said: dict[Metadata, Said] = {}


def said_by(metadata: Metadata) -> Said:
    """What they say."""
    return _said.get(metadata) or _read(metadata)


def _read(metadata: Metadata) -> Said:
    texts = {key: value for key, value in metadata if isinstance(value, str)}
    deadline_ms, envoy_ms = texts.get(_DEADLINE_MS), texts.get(_ENVOY_MS)
    said = Said(
        slo=texts.get("x-tritonsched-class"),
        explain=texts.get("x-tritonsched-explain") == "1",
        reservation=texts.get("x-tritonsched-reservation"),
        tenant=texts.get("x-tritonsched-tenant"),
        deadline_ms=deadline_ms,
        envoy_ms=envoy_ms,
        is_timed=deadline_ms is not None or envoy_ms is not None,
        is_odd=_LOAD_METRICS in texts,
    )
    if sum(len(key) + len(value) for key, value in metadata) <= SAID_BYTES_MAX:
        if len(_said) >= SAID_MAX:
            _said.clear()
        _said[metadata] = said
    return said

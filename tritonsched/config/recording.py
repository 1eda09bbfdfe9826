"""A recording: what arrived, what was decided, what came back, as JSON lines. Rule: a line is a
fact and stands alone; a reader believes nothing that it has not checked.

Each file begins with a header (version, policy, start, clock), then what holds at its begin:
tuning, state of Triton, models. So a file can be replayed without those before it. Times are
integer ns of the sidecar's monotonic clock. Names of models, classes, tenants and devices are in
it; no payload, no address, no client. A weight is without what fairness made of it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from tritonsched.core.batch import Batch, Grant, Refuse
from tritonsched.core.request import Outcome, Request
from tritonsched.core.reservation import Reservation
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant

FORMAT = 1
MARK = '{"recording":"tritonsched",'
"""How every file begins; nothing else is ever moved aside or overwritten."""
_NAMES_CACHED = 4096


@lru_cache(maxsize=_NAMES_CACHED)
def _quoted(name: str) -> str:
    return json.dumps(name)


def header(
    *, version: str, recording: str, part: int, started: str, policy: Mapping[str, Any]
) -> str:
    """The first line of a file.

    recording: the same in all files of one. part: 0, 1, ... in order of time. started: wall clock,
    ISO 8601. policy: the policy file's values in force.
    """
    rest = {
        "format": FORMAT,
        "version": version,
        "id": recording,
        "part": part,
        "started": started,
        "clock": "monotonic ns",
        "policy": policy,
    }
    return MARK + json.dumps(rest, separators=(",", ":"))[1:] + "\n"


def policy_line(policy: Mapping[str, Any], now: int) -> str:
    """Another policy is in force."""
    return _line({"what": "policy", "at_ns": now, "policy": policy})


def tuning_line(tuning: Tuning, now: int) -> str:
    """Feedback, or a measured round trip, changed a number."""
    return _line({"what": "tuning", "at_ns": now, **asdict(tuning)})


def server_line(state: ServerState, now: int) -> str:
    """Triton went away or came back, or the sidecar drains."""
    return _line({"what": "server", "at_ns": now, "state": state.value})


def model_line(variant: Variant, now: int) -> str:
    """How Triton serves a model, before its first request and after each change."""
    shown = {"model": variant.model, "rows_max": variant.rows_max, "devices": variant.devices}
    shown |= {"accuracy": variant.accuracy} if variant.accuracy < 1 else {}
    return _line({"what": "model", "at_ns": now, **shown})


def reserve_line(wanted: Reservation, now: int) -> str:
    """A stream asked for a guarantee."""
    return _line({"what": "reserve", "at_ns": now, **asdict(wanted)})


def reserved_line(said: Grant | Refuse, now: int) -> str:
    """It has it, or not, or not any more."""
    number = said.reservation.id
    if isinstance(said, Grant):
        return _line({"what": "grant", "at_ns": now, "id": number, "device": said.device})
    return _line({"what": "refuse", "at_ns": now, "id": number, "reason": said.reason.value})


def release_line(number: int, now: int) -> str:
    """The stream is over."""
    return _line({"what": "release", "at_ns": now, "id": number})


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":")) + "\n"


# What follows is written thousands of times a second, hence not by `json.dumps`.


def arrive_line(request: Request, now: int) -> str:
    """A request was taken in. received_ns: the first byte of it; deadlines count from there."""
    deadline = request.deadline_ns if request.has_deadline else "null"
    stream = f'"reservation":{request.reservation},' if request.reservation else ""
    return (
        f'{{"what":"arrive","at_ns":{now},"id":{request.id},"model":{_quoted(request.model)},'
        f'"class":{_quoted(request.slo)},"tenant":{_quoted(request.tenant)},{stream}'
        f'"signature":{request.signature},"rows":{request.rows},'
        f'"received_ns":{request.arrival_ns},"deadline_ns":{deadline},'
        f'"weight":{request.weight / request.boost!r},'
        f'"alone":{"true" if request.alone else "false"}}}\n'
    )


def dispatch_line(batch: Batch, now: int) -> str:
    """A batch was sent. start_ns, expected_ns: when it should start, and its execution alone."""
    members = ",".join([str(request.id) for request in batch.requests])
    return (
        f'{{"what":"dispatch","at_ns":{now},"batch":{batch.id},"model":{_quoted(batch.model)},'
        f'"device":{_quoted(batch.device)},"rows":{batch.rows},"requests":[{members}],'
        f'"start_ns":{batch.expected_start_ns},"expected_ns":{batch.expected_ns}}}\n'
    )


def complete_line(batch: Batch, exec_ns: int, now: int) -> str:
    """A batch was executed in `exec_ns`."""
    return (
        f'{{"what":"complete","at_ns":{now},"batch":{batch.id},"model":{_quoted(batch.model)},'
        f'"device":{_quoted(batch.device)},"rows":{batch.rows},"exec_ns":{exec_ns}}}\n'
    )


def leave_line(request: Request, outcome: Outcome, reason: str, now: int) -> str:
    """A request left. reason: of a refusal, else empty."""
    return (
        f'{{"what":"leave","at_ns":{now},"id":{request.id},'
        f'"outcome":"{outcome.value}","reason":"{reason}"}}\n'
    )

"""Whether the sidecar's answer to an odd request is a finding. Rule: `compare`'s rules, found out
from the answers, because nobody has named one for a request that nobody has written.
"""

import re
from dataclasses import dataclass

from tests.differential.cases import GrpcCase, HttpCase
from tests.differential.compare import grpc_difference, http_difference
from tests.differential.wire import GrpcOutcome, HttpOutcome

DEADLINES = {"deadline-unreachable", "deadline-expired"}
"""Refusals that a mutated timeout asks for; Triton has no deadlines."""
SHIELDED = "shielded"
"""What may end Triton is refused; of a request with several faults Triton may name another."""
AWAY = "triton-unavailable"
"""Triton has just ended: its own finding, which is noticed a moment later."""
BAD_PARAMETER = re.compile(
    r"invalid value type for '\w*' parameter|invalid value for '\w*', expected"
    "|parameter keys starting with"
)
"""Of several, Triton names the first of a map, which has no order."""
SEQUENCE = b"\x0a\x03seq"
"""Its sums go on from what other requests have left, which come in another order here and there."""
RULES = ("not-http", "strict", "too-long", "half-closed", "not-utf-8")
TALKING = frozenset({"half-closed", "strict", "not-utf-8"})  # rules of two answers


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No answer that could be read: why."""

    why: str


UNANSWERED = Unanswered("no answer in time")
Told = HttpOutcome | GrpcOutcome | Unanswered


def finding(case: HttpCase | GrpcCase, theirs: Told, mine: Told) -> str:
    """What is wrong with mine; empty if nothing is."""
    if _reason(mine) in DEADLINES or (SHIELDED in _reason(mine) and _may(theirs, mine)):
        return ""
    if _reason(mine) == AWAY and _is_silent(theirs):
        return ""
    if isinstance(theirs, Unanswered) and isinstance(mine, Unanswered):
        return ""
    if isinstance(theirs, HttpOutcome) and isinstance(mine, HttpOutcome):
        return _http(theirs, mine)
    if isinstance(theirs, GrpcOutcome) and isinstance(mine, GrpcOutcome):
        assert isinstance(case, GrpcCase)
        if theirs.code == mine.code and (
            all(_names_parameter(told) for told in (theirs, mine))
            or (SEQUENCE in b"".join(case.ask.messages) and _sizes(theirs) == _sizes(mine))
        ):
            return ""
        return grpc_difference(case.ask, theirs, mine)
    if isinstance(theirs, Unanswered) and isinstance(mine, HttpOutcome):
        return "" if not _is_ours(mine) else f"Triton: {theirs.why}; sidecar: {mine}"
    return f"Triton: {theirs}; sidecar: {mine}"


def _http(theirs: HttpOutcome, mine: HttpOutcome) -> str:
    fault = http_difference(theirs, mine)
    if not fault or any(
        not http_difference(theirs, mine, rule) for rule in RULES if _fits(rule, theirs, mine)
    ):
        return ""
    is_lenient = not theirs.replies and not _is_ours(mine)
    return "" if is_lenient else fault


def _fits(rule: str, theirs: HttpOutcome, mine: HttpOutcome) -> bool:
    return bool(theirs.replies and mine.replies) or rule not in TALKING


def _may(theirs: Told, mine: Told) -> bool:
    """Triton refuses, or dies, or was lucky: freed memory is mostly still there."""
    return _is_no(theirs) or "class-of-nothing" in str(mine)


def _is_no(told: Told) -> bool:
    """An error, or nothing."""
    if isinstance(told, HttpOutcome):
        return not told.replies or any(reply.start.split(" ")[1] >= "400" for reply in told.replies)
    return not isinstance(told, GrpcOutcome) or told.code != "OK"


def _names_parameter(told: GrpcOutcome) -> bool:
    """Of a call, or in the last message of a stream."""
    last = told.messages[-1].decode(errors="replace") if told.messages else ""
    return bool(BAD_PARAMETER.search(told.details + last))


def _sizes(told: GrpcOutcome) -> list[int]:
    return [len(message) for message in told.messages]


def _is_silent(told: Told) -> bool:
    """Cut off in the middle, or unheard."""
    if isinstance(told, GrpcOutcome):
        return told.code == "UNAVAILABLE"
    return isinstance(told, Unanswered) or not told.replies


def _is_ours(outcome: HttpOutcome) -> bool:
    """An error of the sidecar's own."""
    return bool(_reason(outcome))


def _reason(told: Told) -> str:
    """Of a refusal or error of the sidecar's own."""
    if isinstance(told, HttpOutcome):
        return "".join(reply.header("x-tritonsched-reason") for reply in told.replies)
    if isinstance(told, GrpcOutcome):
        return str(dict(told.metadata[1]).get("x-tritonsched-reason", ""))
    return ""

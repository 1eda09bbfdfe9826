"""The policy file changes while requests run. Rule: read and judge aside, swap in one step, and
keep the old policy whenever anything is wrong.

Reading, parsing and judging happen in a thread; the swap happens in the event loop, between two
decisions, so no request ever sees half a policy. Requests that were taken in keep their deadline
and worth. What cannot change live (`NOT_LIVE`) is told, and takes effect at the next start.

With `reload.guard_s` a policy is on probation: if the share of requests not served in time
(late, expired or refused, of all that did not leave by themselves) more than doubles in that time,
the policy before comes back and stays until the file changes again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tritonsched.config.faults import PolicyFaults
from tritonsched.config.schema import PolicyFile
from tritonsched.core.controllers import MEASURED
from tritonsched.core.feedback import Feedback
from tritonsched.core.ledger import Ledger
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import Outcome
from tritonsched.core.scheduler import Scheduler
from tritonsched.errors import ConfigError
from tritonsched.proxy.driver import Driver
from tritonsched.proxy.intake import Intake
from tritonsched.proxy.service import Proxy

NOT_LIVE = (
    "transport.", "servers", "limits.request_mib_max", "limits.connections_max",
    "limits.held_mib_max",
)  # fmt: skip
CHANGES_SHOWN = 20  # in one line of the log
MISS_RATIO_MIN = 0.01  # twice next to nothing is no reason to go back
GUARD_REQUESTS_MIN = 50  # fewer say nothing
APPLIED, REFUSED, ROLLED_BACK = "applied", "refused", "rolled-back"
_MISSED = (Outcome.LATE, Outcome.EXPIRED, Outcome.REJECTED)


@dataclass(frozen=True, slots=True)
class Reload:
    """How one reload ended. error: in words, one fault a line; faults: the same as data."""

    outcome: str
    generation: int
    changes: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    error: str = ""
    faults: tuple[dict[str, Any], ...] = ()


def changes(old: PolicyFile, new: PolicyFile) -> list[str]:
    """`classes.gold.deadline_ms 50→40`, in order of the keys."""
    before, after = (dict(_leaves(policy.model_dump(), "")) for policy in (old, new))
    keys = sorted(before.keys() | after.keys())
    return [
        f"{key} {_shown(before, key)}→{_shown(after, key)}"
        for key in keys
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    ]


_ABSENT = object()


def _shown(values: dict[str, Any], key: str) -> str:
    return str(values.get(key, "absent"))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else key)


class LivePolicy:
    """Puts a policy into the running parts, in one step of the event loop."""

    def __init__(
        self,
        scheduler: Scheduler,
        driver: Driver,
        intake: Intake,
        proxy: Proxy,
        rule: str,
        *,
        feedback: Feedback | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._driver = driver
        self._intake = intake
        self._proxy = proxy
        self._rule = rule
        self._feedback = feedback or Feedback()

    def adopt(self, policy: PolicyFile, now: int) -> None:
        """Everything that can change live. Never raises for a valid policy."""
        if policy.scheduler.policy != self._rule:
            self._rule = policy.scheduler.policy
            self._scheduler.set_policy(POLICIES[self._rule](), now)
        self._intake.adopt(policy.slo_classes(), policy.class_of_model)
        self.adopt_tenants(policy)
        self._proxy.limit_tensor_bytes(policy.limits.tensor_bytes_max)
        self._proxy.shield.adopt(**policy.shield.model_dump())
        self._proxy.adopt_families(policy.families(), policy.accuracies())
        given = policy.tuning()
        tuning = replace(
            self._scheduler.tuning,
            window_ns=given.window_ns,
            rows_cap=given.rows_cap,
            queue_requests_max=given.queue_requests_max,
            safety=given.safety,
            learning=given.learning,
        )
        settings = policy.feedback_settings()
        for knob in MEASURED.keys() - settings.knobs:  # the others follow what is measured
            tuning = replace(tuning, **{f"{knob}_ns": getattr(given, f"{knob}_ns")})
        self._feedback.adopt(settings)
        self._driver.retune(tuning)  # wakes the driver: it decides with all of the above

    def adopt_tenants(self, policy: PolicyFile) -> None:
        """Who may ask, and what is guaranteed to each."""
        rules = policy.tenant_rules()
        self._scheduler.tenants.adopt(rules, policy.fairness_rule())
        self._intake.adopt_tenants(rules, policy.default_tenant)


class Reloader:
    """Reloads one after another, and remembers how the last one ended.

    read: the policy as it is on disk, without holding up the loop; raises ConfigError. adopt:
    takes it into use. ledger: judges it. told: hears how each reload ended. pause: waits some
    seconds.
    """

    def __init__(
        self,
        policy: PolicyFile,
        *,
        read: Callable[[], Awaitable[PolicyFile]],
        adopt: Callable[[PolicyFile], None],
        ledger: Ledger,
        told: Callable[[Reload], None],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self.policy = policy
        self.last = Reload(APPLIED, 1)
        self.last_error = ""
        self._started_with = policy
        self._read = read
        self._adopt = adopt
        self._ledger = ledger
        self._told = told
        self._pause = pause
        self._since = self._counts()
        self._turn = asyncio.Lock()
        self._guard: asyncio.Task[None] | None = None

    async def reload(self) -> Reload:
        """Read, judge, swap. Never raises for what stands in a file."""
        async with self._turn:
            try:
                policy = await self._read()
            except ConfigError as error:
                return self._refused(error)
            return self._taken(policy, APPLIED)

    def close(self) -> None:
        """End a probation that runs; the policy stays."""
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None

    def _refused(self, error: ConfigError) -> Reload:
        faults = error.faults if isinstance(error, PolicyFaults) else ()
        found = tuple(
            {"line": f.line, "column": f.column, "path": f.path, "message": f.message}
            for f in faults
        )
        self.last_error = str(error)
        made = Reload(REFUSED, self.last.generation, error=str(error), faults=found)
        return self._end(made)

    def _taken(self, policy: PolicyFile, outcome: str, error: str = "") -> Reload:
        self.close()
        before, self.policy = self.policy, policy
        changed = tuple(changes(before, policy))
        pending = (line for line in changes(self._started_with, policy))
        restart = tuple(line for line in pending if line.startswith(NOT_LIVE))
        self._adopt(policy)
        self.last_error = error
        missed, count = self._counts()
        ratio = _ratio(missed - self._since[0], count - self._since[1])
        self._since = (missed, count)
        if outcome == APPLIED and changed and policy.reload.guard_s > 0:
            self._guard = asyncio.ensure_future(self._watched(before, ratio))
        generation = self.last.generation + 1
        return self._end(Reload(outcome, generation, changed, restart, error))

    def _end(self, made: Reload) -> Reload:
        self.last = made
        self._told(made)
        return made

    async def _watched(self, before: PolicyFile, ratio_before: float) -> None:
        """The probation: back to `before` if this policy is clearly worse."""
        await self._pause(self.policy.reload.guard_s)
        missed, count = self._counts()
        missed, count = missed - self._since[0], count - self._since[1]
        ratio = _ratio(missed, count)
        if count < GUARD_REQUESTS_MIN or ratio <= 2 * max(MISS_RATIO_MIN, ratio_before):
            return
        self._guard = None  # this task: it must not cancel itself
        error = (
            f"rolled back: {ratio:.1%} of {count} requests were not served in time under the new "
            f"policy, {ratio_before:.1%} under the one before"
        )
        self._taken(before, ROLLED_BACK, error)

    def _counts(self) -> tuple[int, int]:
        missed = sum(map(self._ledger.total, _MISSED))
        rest = self._ledger.total(Outcome.SERVED) + self._ledger.total(Outcome.FAILED)
        return missed, missed + rest


def _ratio(missed: int, count: int) -> float:
    return missed / count if count else 0.0


def in_words(made: Reload) -> str:
    """One line for the log."""
    if made.outcome == REFUSED:
        return f"policy refused, the old one stays: {made.error}"
    shown = "; ".join(made.changes[:CHANGES_SHOWN]) or "no change"
    more = len(made.changes) - CHANGES_SHOWN
    text = f"policy {made.generation} {made.outcome}: {shown}"
    text += f"; and {more} more" if more > 0 else ""
    text += f"; {made.error}" if made.error else ""
    if made.restart:
        text += f"; only after a restart: {'; '.join(made.restart[:CHANGES_SHOWN])}"
    return text

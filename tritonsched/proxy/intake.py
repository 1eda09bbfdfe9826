"""A call becomes a Request: its class, its deadline, its rows. Rule: pure; arrival is the call's
own.

Deadlines. The first of these that is present counts: the gRPC deadline, `x-request-deadline-ms`,
the v2 parameter `timeout` (µs, Triton's own), `x-envoy-expected-rq-timeout-ms`, the class. A
client can only tighten what its class allows; a later wish is clipped and told in the explain
header. A deadline runs from the first byte of the request's headers.
A frame of a granted reservation has the deadline that was reserved, or a tighter one of its own.

Tenants. Who asks is named as classes are; who is not named, or unknown, is the default tenant: a
name costs nothing to make up, so it must not be worth more than none.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tritonsched.core.request import NEVER_NS, Request, SloClass, Tenant, Utility
from tritonsched.core.reservation import Reservation
from tritonsched.errors import BadDeadline, UnknownClass
from tritonsched.proxy.named import class_named, reservation_named, tenant_named
from tritonsched.tensors import DeadlineHints, InferCall

DEADLINE_NS_MAX = 86_400_000_000_000  # a day: longer wishes mean the same
NOBODY = Tenant("default")
STANDINGS_MAX = 256  # remembered
Standing = tuple[SloClass, Tenant, Reservation | None]


class Terms(NamedTuple):
    """What requests have in common that differ in their time alone; see `Request`.

    allowed_ns: the latest deadline after the arrival.
    """

    model: str
    slo: str
    signature: int
    rows: int
    allowed_ns: int
    weight: float
    alone: bool
    reservation: int
    version: str
    utility: Utility | None
    tenant: str


def relative_deadline_ns(hints: DeadlineHints) -> int | None:
    """What the client asked for, in ns after arrival; None if it asked for nothing.

    0 or less means already too late. Raises BadDeadline for what is no time at all.
    """
    if hints.grpc_remaining_ns is not None:
        return min(hints.grpc_remaining_ns, DEADLINE_NS_MAX)
    if hints.header_ms is not None:
        return _from_ms(hints.header_ms, "x-request-deadline-ms")
    if hints.timeout_us:  # 0 is Triton's "no timeout"
        if hints.timeout_us < 0:
            raise BadDeadline(f"parameter 'timeout': {hints.timeout_us} µs is negative")
        return min(hints.timeout_us * 1_000, DEADLINE_NS_MAX)
    if hints.envoy_ms is not None:
        return _from_ms(hints.envoy_ms, "x-envoy-expected-rq-timeout-ms")
    return None


def _from_ms(text: str, name: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or value < 0:
        shown = text[:40]
        raise BadDeadline(f"header '{name}': {shown!r} is not a number of milliseconds >= 0")
    return int(min(value * 1e6, float(DEADLINE_NS_MAX)))


class Intake:
    """Turns calls into requests under a policy file's classes.

    classes: by name. class_of_model: the class of a model's requests that name none.
    reservation_of: the granted stream that a frame names. on_change: what was said of a class or a
    tenant is void.
    """

    def __init__(
        self,
        classes: Mapping[str, SloClass],
        class_of_model: Callable[[str], str],
        reservation_of: Callable[[str | None], Reservation | None] = lambda _: None,
    ) -> None:
        self.on_change: Callable[[], object] = lambda: None
        self.adopt(classes, class_of_model)
        self.adopt_tenants({}, NOBODY.name)
        self._reservation_of = reservation_of
        self._next_id = 0

    def adopt(self, classes: Mapping[str, SloClass], class_of_model: Callable[[str], str]) -> None:
        """The policy file changed: calls from now on; what was taken in keeps its deadline."""
        self._classes = classes
        self._class_of_model = class_of_model
        self._standings: dict[tuple[str, str | None, str | None], Standing] = {}
        self.on_change()

    def adopt_tenants(self, tenants: Mapping[str, Tenant], default: str) -> None:
        """Who may ask from now on, by name; default: who asks when nobody known is named."""
        self._tenants = tenants
        self._default_tenant = tenants.get(default, NOBODY)
        self._standings.clear()
        self.has_shares = any(tenant.share for tenant in tenants.values())
        self._has_own = any(tenant.merges_own for tenant in tenants.values())
        self.on_change()

    def tenant(self, call: InferCall) -> Tenant:
        """Who asks; of a frame that does not say, who reserved its stream."""
        name = tenant_named(call)
        if name is None:
            stream = self._stream(call)
            name = stream.tenant if stream else None
        return self.tenant_of(name)

    def tenant_of(self, name: str | None) -> Tenant:
        """The tenant of that name, or the default one."""
        return self._tenants.get(name or "", self._default_tenant)

    def merges_with(self, call: InferCall) -> str:
        """The tenant with whose calls alone this one may merge; empty for anybody's."""
        tenant = self.tenant(call) if self._has_own else NOBODY
        return tenant.name if tenant.merges_own else ""

    def request(self, call: InferCall, *, signature: int, alone: bool) -> tuple[Request, bool]:
        """The request, and whether its deadline was clipped to its class'.

        Raises BadDeadline or UnknownClass.
        """
        return self.request_on(self.terms(call, signature=signature, alone=alone), call)

    def terms(self, call: InferCall, *, signature: int, alone: bool) -> Terms:
        """What its request has of it but for its own time. Raises UnknownClass."""
        slo, tenant, stream = self._standing(call)
        return Terms(
            call.model,
            slo.name,
            signature,
            _rows(call),
            stream.relative_deadline_ns if stream else slo.relative_deadline_ns,
            slo.weight * tenant.weight,
            alone,
            stream.id if stream else 0,
            call.version,
            slo.utility,
            tenant.name,
        )

    def request_on(self, terms: Terms, call: InferCall) -> tuple[Request, bool]:
        """The request of a call on these terms, and whether its deadline was clipped to theirs.

        Raises BadDeadline.
        """
        model, slo, signature, rows, allowed_ns, weight, alone, stream, version, utility, tenant = (
            terms
        )
        wanted_ns = relative_deadline_ns(call.hints)
        clipped = wanted_ns is not None and wanted_ns > allowed_ns
        relative_ns = allowed_ns if wanted_ns is None or clipped else wanted_ns
        received_ns = call.received_ns
        self._next_id += 1
        request = Request(  # by position: names cost half as much again
            self._next_id,
            model,
            slo,
            signature,
            rows,
            received_ns,
            NEVER_NS if relative_ns >= NEVER_NS else received_ns + relative_ns,
            weight,
            alone,
            False,  # no second try
            stream,
            version,
            utility,
            tenant,
            1.0,  # no boost: the scheduler's
            call.server,
        )
        return request, clipped

    def _standing(self, call: InferCall) -> Standing:
        """Class, tenant and reserved stream: the same for all calls of a client that names none of
        them in parameters, and no stream.
        """
        if call.parameters or call.reservation is not None:
            return self._slo_class(call), self.tenant(call), self._stream(call)
        key = (call.model, call.slo, call.tenant)
        standing = self._standings.get(key)
        if standing is None:
            standing = self._slo_class(call), self.tenant(call), None
            if len(self._standings) >= STANDINGS_MAX:
                self._standings.clear()
            self._standings[key] = standing
        return standing

    def _stream(self, call: InferCall) -> Reservation | None:
        name = reservation_named(call)
        return self._reservation_of(name) if name else None

    def _slo_class(self, call: InferCall) -> SloClass:
        named = class_named(call)
        name = self._class_of_model(call.model) if named is None else named
        slo = self._classes.get(name)
        if slo is None:
            known = ", ".join(sorted(self._classes))
            raise UnknownClass(f"class {name[:64]!r} is unknown; use one of {known}")
        return slo


def _rows(call: InferCall) -> int:
    """Leading dimension of the first input; 1 for a call whose form could not be read."""
    shape = call.inputs[0].shape if call.inputs else ()
    return shape[0] if shape and shape[0] >= 1 else 1

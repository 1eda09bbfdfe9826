"""The way of calls that differ in their id, data and deadline alone. Rule: what was found out about
one of them holds for the next, until anything changes that it was found out by: what is known of
models, the policy file's classes and tenants.

Remembered are only calls that may be merged and that nothing outside of them has a say in: without
parameters, regions, reserved streams or sequences, and of types of fixed size.
"""

from typing import NamedTuple

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.proxy.intake import Terms
from tritonsched.tensors import InferCall

ROUTES_MAX = 1024  # remembered

RouteKey = tuple[bytes | None, str, str, str | None, str | None]
"""Form, model, version, class and tenant as a call names them."""


class Route(NamedTuple):
    """Where such calls go, and on what terms."""

    info: ModelInfo
    terms: Terms


class Routes(dict[RouteKey, Route]):
    """By what such calls have in common; `clear` it when anything above changes."""

    def learn(self, call: InferCall, route: Route) -> None:
        """Remember the way of a call that may be merged, if others may go it unasked."""
        is_free = not (call.lone_reason or call.parameters or call.refs or call.server)
        if call.form is None or call.reservation is not None or not is_free:
            return
        if any(tensor.datatype == "BYTES" for tensor in call.inputs):
            return
        if len(self) >= ROUTES_MAX:
            self.clear()
        self[call.form, call.model, call.version, call.slo, call.tenant] = route

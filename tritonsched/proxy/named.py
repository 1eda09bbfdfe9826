"""The names that a call gives: class, tenant, reserved stream. Rule: header or metadata first, then
the v2 parameter of the same name, which is ours alone: it neither parts batches nor reaches a model
that is sent a merged one.
"""

from collections.abc import Mapping

from tritonsched.tensors import InferCall, ParameterValue

CLASS = "x-tritonsched-class"
TENANT = "x-tritonsched-tenant"
RESERVATION = "x-tritonsched-reservation"
OURS = frozenset((CLASS, TENANT, RESERVATION))


def class_named(call: InferCall) -> str | None:
    """The class that the call names; None if none."""
    return call.slo if call.slo is not None else _parameter(call, CLASS)


def tenant_named(call: InferCall) -> str | None:
    """The tenant that the call names; None if none."""
    return call.tenant if call.tenant is not None else _parameter(call, TENANT)


def reservation_named(call: InferCall) -> str | None:
    """The reserved stream that the call says it is a frame of; None if none."""
    return call.reservation if call.reservation is not None else _parameter(call, RESERVATION)


def _parameter(call: InferCall, name: str) -> str | None:
    value = call.parameters.get(name)
    return value if isinstance(value, str) else None


def ours(parameters: object) -> dict[str, ParameterValue]:
    """Ours among parameters as they came, for a call whose form was not read."""
    if not isinstance(parameters, dict):
        return {}
    return {name: parameters[name] for name in OURS if isinstance(parameters.get(name), str)}


def of_the_model(parameters: Mapping[str, ParameterValue]) -> Mapping[str, ParameterValue]:
    """Those that are not ours."""
    if OURS.isdisjoint(parameters):
        return parameters
    return {name: value for name, value in parameters.items() if name not in OURS}

"""YAML to schema, or every fault as `file:line:col: path: message`. Rule: all faults at once.

Three kinds are gathered: of form (reader), of the schema (pydantic), and of names that refer to
each other (`references`), which are looked for even where the schema found faults.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tritonsched.config.faults import Fault, PolicyFaults, did_you_mean
from tritonsched.config.reader import (
    FAULTS_MAX,
    FILE_BYTES_MAX,
    Places,
    dotted,
    read_text,
    read_values,
)
from tritonsched.config.schema import PolicyFile, references

__all__ = ["FILE_BYTES_MAX", "load_policy", "parse_policy"]


def load_policy(path: Path) -> PolicyFile:
    """Read a policy file. Raises ConfigError with one line a fault.

    The profile that it names is looked for beside it.
    """
    policy = parse_policy(read_text(path), str(path))
    if policy.profile is None:
        return policy
    return policy.model_copy(update={"profile": str(path.parent / policy.profile)})


def parse_policy(text: str, name: str = "policy.yaml") -> PolicyFile:
    """The policy in `text`; `name` stands before each fault. Raises PolicyFaults."""
    policy, _ = parse_with_places(text, name)
    return policy


def parse_with_places(text: str, name: str) -> tuple[PolicyFile, Places]:
    """The policy, and where its values stand. Raises PolicyFaults."""
    data, places, faults = read_values(text, name)
    if data is None:
        return PolicyFile(), places
    seen = {(fault.line, fault.column) for fault in faults}
    named = [Fault(*places.of(path), dotted(path), message) for path, message in references(data)]
    faults += [fault for fault in named if (fault.line, fault.column) not in seen]
    seen |= {(fault.line, fault.column) for fault in faults}
    policy = PolicyFile()
    try:
        policy = PolicyFile.model_validate(data)
    except ValidationError as error:
        of_schema = schema_faults(error, places)
        if named:  # the schema's own word on the same names has no place
            of_schema = [fault for fault in of_schema if fault.path]
        faults += [fault for fault in of_schema if (fault.line, fault.column) not in seen]
    if faults:
        raise PolicyFaults(name, sorted(faults)[:FAULTS_MAX])
    return policy, places


def schema_faults(
    error: ValidationError, places: Places, root: type[BaseModel] = PolicyFile
) -> list[Fault]:
    """What pydantic says of a file of the schema `root`, each with its place."""
    faults = []
    for fault in error.errors(include_url=False):
        is_key = "[key]" in fault["loc"] or fault["type"] == "extra_forbidden"
        path = tuple(part for part in fault["loc"] if part != "[key]")
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "unknown key" + did_you_mean(str(path[-1]), _known_keys(path[:-1], root))
        elif fault["type"] == "literal_error":
            given = str(fault["input"])
            message += did_you_mean(given, _literals(fault["ctx"]["expected"]))
        faults.append(Fault(*places.of(path, key=is_key), dotted(path), message))
    return faults


def _literals(expected: str) -> list[str]:
    return [part.strip("' ") for part in expected.replace(" or ", ",").split(",")]


def _known_keys(path: tuple[str | int, ...], section: type[BaseModel]) -> list[str]:
    """The keys that the schema allows at a path."""
    parts = list(path)
    while parts:
        field = section.model_fields.get(str(parts.pop(0)))
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            return []
        section = inner
        if field is not None and _has_many(field.annotation) and parts:
            parts.pop(0)  # the name of a class or model, the number of a point
    return list(section.model_fields)


def _has_many(annotation: Any) -> bool:  # typing objects have no common type
    return getattr(annotation, "__origin__", None) in (dict, list, Mapping)


def _section_of(annotation: Any) -> type[BaseModel] | None:  # as above
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None

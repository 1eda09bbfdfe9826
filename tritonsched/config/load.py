"""YAML to schema, or every fault as `file:line:col: path: message`. Rule: hostile text costs
nothing.

Guards stand before the parser, because PyYAML's C loader crashes the process on deep nesting, its
safe_load takes duplicate keys in silence, and aliases can expand without bound. So: size first,
then nesting and aliases counted over the scanner's tokens, then `compose` (which keeps line and
column), then our own construction, which refuses duplicates.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tritonsched.config.schema import PolicyFile
from tritonsched.errors import ConfigError

FILE_BYTES_MAX = 256 * 1024
DEPTH_MAX = 50
_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)

Marks = dict[tuple[str | int, ...], tuple[int, int]]


def load_policy(path: Path) -> PolicyFile:
    """Read a policy file. Raises ConfigError with one line a fault."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes; a policy file is not")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
    return parse_policy(text, str(path))


def parse_policy(text: str, name: str = "policy.yaml") -> PolicyFile:
    """The policy in `text`; `name` stands before each fault. Raises ConfigError."""
    try:
        _guard(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ConfigError(f"{name}:{place}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}:1:1: not YAML: {error}") from error
    if node is None:
        return PolicyFile()
    marks: Marks = {}
    faults: list[str] = []
    data = _construct(node, (), marks, faults)
    if faults:
        raise ConfigError("\n".join(f"{name}:{fault}" for fault in faults))
    try:
        return PolicyFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_faults(error, marks, name))) from error


def _guard(text: str, name: str) -> None:
    """Refuse nesting, aliases and tags before anything recursive sees them."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, (yaml.AliasToken, yaml.AnchorToken)):
            kind = "aliases and anchors are not allowed"
        elif isinstance(token, yaml.TagToken):
            kind = "tags are not allowed"
        elif isinstance(token, _OPENING):
            depth += 1
            kind = f"nested deeper than {DEPTH_MAX}" if depth > DEPTH_MAX else ""
        else:
            depth -= isinstance(token, _CLOSING)
            kind = ""
        if kind:
            mark = token.start_mark
            raise ConfigError(f"{name}:{mark.line + 1}:{mark.column + 1}: {kind}")


def _construct(
    node: yaml.Node, path: tuple[str | int, ...], marks: Marks, faults: list[str]
) -> Any:  # YAML holds any kind of value; the schema decides
    marks[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node)
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if not isinstance(key, str):
                faults.append(f"{line}:{column}: a key must be text; quote it")
            elif key in result:
                faults.append(f"{line}:{column}: {_dotted((*path, key))}: key stands twice")
            else:
                result[key] = _construct(value_node, (*path, key), marks, faults)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(n, (*path, i), marks, faults) for i, n in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:  # as above
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError):
        return node.value
    finally:
        loader.dispose()


def _faults(error: ValidationError, marks: Marks, name: str) -> list[str]:
    lines = []
    for fault in error.errors():
        path = tuple(part for part in fault["loc"] if part != "[key]")
        place = path
        while place and place not in marks:
            place = place[:-1]
        line, column = marks.get(place, (1, 1))
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "unknown key" + _suggestion(path)
        where = f"{_dotted(path)}: " if path else ""
        lines.append(f"{name}:{line}:{column}: {where}{message}")
    return lines


def _suggestion(path: tuple[str | int, ...]) -> str:
    close = difflib.get_close_matches(str(path[-1]), _known_keys(path[:-1]), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    """The keys that the schema allows at a path."""
    section: type[BaseModel] = PolicyFile
    parts = list(path)
    while parts:
        field = section.model_fields.get(str(parts.pop(0)))
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            return []
        section = inner
        if field is not None and _is_mapping(field.annotation) and parts:
            parts.pop(0)  # the name of a class or model
    return list(section.model_fields)


def _is_mapping(annotation: Any) -> bool:  # typing objects have no common type
    return getattr(annotation, "__origin__", None) in (dict, Mapping)


def _section_of(annotation: Any) -> type[BaseModel] | None:  # as above
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))

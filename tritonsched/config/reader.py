"""YAML text to plain values, with the place of each. Rule: hostile text costs nothing.

Guards stand before the parser, because PyYAML's C loader crashes the process on deep nesting, its
safe_load takes duplicate keys in silence, and aliases can expand without bound. So: size first,
then nesting, aliases and tokens counted over the scanner, then `compose` (which keeps line and
column), then our own construction. That one refuses duplicates, and numbers and words that YAML
1.1 reads in a way nobody expects (`1:30` is 90, `010` is 8, `no` is false, `1e3` is text).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tritonsched.config.faults import SHOWN_CHARS, Fault, PolicyFaults
from tritonsched.errors import ConfigError

FILE_BYTES_MAX = 256 * 1024
DEPTH_MAX = 50
TOKENS_MAX = 50_000  # a full file of 64 classes and 1000 models has about 20,000
FAULTS_MAX = 200  # nobody reads more; the rest is the same again
_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
_ODD_NUMBER = re.compile(
    r"[-+]?(0[0-7_]+|0[xob][0-9a-fA-F_]+|[0-9][0-9_]*_[0-9_.]*|[0-9][0-9_]*(:[0-9.]+)+)"
)
_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")
_ODD_WORDS = {"yes", "no", "on", "off"}

Path_ = tuple[str | int, ...]
Mark = tuple[int, int]


class Places:
    """Where keys and values stand. Lines and columns start at 1."""

    def __init__(self) -> None:
        self.values: dict[Path_, Mark] = {}
        self.keys: dict[Path_, Mark] = {}

    def of(self, path: Path_, *, key: bool = False) -> Mark:
        """The place of the value (or key) at `path`, or of what holds it."""
        table = self.keys if key else self.values
        if path in table:
            return table[path]
        return self.of(path[:-1]) if path else (1, 1)


def read_text(path: Path) -> str:
    """The text of a policy file. Raises ConfigError: unreadable, too large, not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(
            f"{path}: larger than {FILE_BYTES_MAX} bytes; no policy file or profile is"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        message = f"not UTF-8 at byte {error.start}"
        raise PolicyFaults(str(path), [Fault(line, column, "", message)]) from error


def read_values(text: str, name: str) -> tuple[Any, Places, list[Fault]]:
    """Plain values of `text`, their places, and faults of form. Raises PolicyFaults if unreadable.

    The value is None for an empty document.
    """
    try:
        fault = unsafe(yaml.scan(text, Loader=yaml.SafeLoader))
        if fault is not None:
            raise PolicyFaults(name, [fault])
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = f"not YAML: {error.problem or error.context}"
        raise PolicyFaults(name, [Fault(line, column, "", problem)]) from error
    except yaml.YAMLError as error:
        fault = Fault(*_place_of_character(text, error), "", f"not YAML: {_first_line(error)}")
        raise PolicyFaults(name, [fault]) from error
    places = Places()
    if node is None:
        return None, places, []
    construction = _Construction(places)
    return construction.value(node, ()), places, construction.faults


def _place_of_character(text: str, error: yaml.YAMLError) -> Mark:
    """A reader error knows the offset of the character it does not allow, and no line."""
    offset = getattr(error, "position", 0) or 0
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def unsafe(tokens: Iterator[yaml.Token]) -> Fault | None:
    """The first thing that nothing recursive may see; no token after it is looked at."""
    depth = 0
    for count, token in enumerate(tokens):
        message = ""
        if isinstance(token, (yaml.AliasToken, yaml.AnchorToken)):
            message = "aliases and anchors are not allowed; write the value twice"
        elif isinstance(token, yaml.TagToken):
            message = "tags are not allowed"
        elif isinstance(token, _OPENING):
            depth += 1
            message = f"nested deeper than {DEPTH_MAX}" if depth > DEPTH_MAX else ""
        else:
            depth -= isinstance(token, _CLOSING)
        if count >= TOKENS_MAX:
            message = f"more than {TOKENS_MAX} YAML tokens; a policy file or profile has fewer"
        if message:
            return Fault(token.start_mark.line + 1, token.start_mark.column + 1, "", message)
    return None


class _Construction:
    """Nodes to values; recursion is bounded by DEPTH_MAX."""

    def __init__(self, places: Places) -> None:
        self.faults: list[Fault] = []
        self._places = places
        self._loader = yaml.SafeLoader("")

    def value(self, node: yaml.Node, path: Path_) -> Any:  # YAML holds any kind of value
        self._places.values[path] = _mark(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # there is no fourth kind
        problem = _odd_form(node)
        if problem:
            self._fault(node, path, problem)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self._fault(key_node, path, "a key must be text; quote it")
            elif key in result:
                first = self._places.keys[*path, key][0]
                self._fault(key_node, (*path, key), f"key stands twice; first in line {first}")
            else:
                self._places.keys[*path, key] = _mark(key_node)
                result[key] = self.value(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:  # as above
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            return node.value

    def _fault(self, node: yaml.Node, path: Path_, message: str) -> None:
        self.faults.append(Fault(*_mark(node), dotted(path), message))


def _odd_form(node: yaml.ScalarNode) -> str:
    """Why a plain scalar is not what it looks like; empty if it is."""
    text = node.value
    if node.style is not None:
        return ""
    shown = repr(text[:SHOWN_CHARS])
    if text.lower() in _ODD_WORDS:
        return f"{shown} is a truth value in YAML; write true or false, or quote it"
    if _ODD_NUMBER.fullmatch(text):
        return f"{shown} is not a plain decimal number; write it out"
    if _EXPONENT.fullmatch(text):
        return f"{shown}: write the number out, without an exponent"
    return ""


def _mark(node: yaml.Node) -> Mark:
    return node.start_mark.line + 1, node.start_mark.column + 1


def dotted(path: Path_) -> str:
    """`models.mlp.rows_max`; long names are cut."""
    return ".".join(str(part)[:SHOWN_CHARS] for part in path)

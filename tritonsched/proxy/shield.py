"""Requests that end a Triton, each behind a named rule. Rule: pure; a table, and who asks it.

| rule               | what it refuses                                 | 2.51              | fixed |
|--------------------|-------------------------------------------------|-------------------|-------|
| `class-of-nothing` | HTTP: classes where a tensor has no elements    | SIGSEGV           | -     |
| `class-of-text`    | classes of a BYTES output                       | SIGFPE            | 2.60  |
| `file-name`        | load: `file:` with a part over 255 bytes        | abort             | 2.69  |
| `json-depth`       | HTTP: brackets nested over 10,000 deep          | SIGSEGV           | -     |
| `json-shape`       | HTTP: a JSON tensor far larger than its data    | abort, SIGSEGV    | 2.59  |
| `json-unread`      | HTTP: JSON too long to be looked at             | not reproduced    | -     |
| `place-wraps`      | a place in a region beyond 2^62                 | SIGSEGV           | 2.58  |
| `region-offset`    | register: a system region with an offset        | foreign memory    | 2.61  |
| `shrunk-region`    | infer: a region made smaller after registering  | SIGBUS            | -     |
| `strict-stream`    | streams: `triton_grpc_error`                    | SIGSEGV, at times | 2.68  |

A rule holds for releases before the one that fixes it (`-`: none known), and for any if Triton has
not told its own. Seen on 2.51 by `tests/integration/test_shield.py`'s requests, sent past the
sidecar; fixes by the server's and core's history (DESIGN.md 26). What never reaches Triton needs no
rule: a body in half a million chunks ends 2.51, and is sent on in one piece.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tritonsched.backend.catalogue import ModelInfo
from tritonsched.errors import Shielded, ShieldedLoad
from tritonsched.proxy.asked import ANY, INFLATED_BYTES_MAX, MEMBERS_MAX, Asked
from tritonsched.proxy.client_regions import Regions
from tritonsched.proxy.region_guard import RegionGuard

NAME_BYTES_MAX = 255  # a part of a path on Linux
PATH_BYTES_MAX = 3840  # of 4096 on Linux; Triton puts a directory before it
DEPTH_MAX = 10_000  # Triton 2.51 bears twice that; no tensor has so many dimensions

Release = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Infer:
    """A call that goes alone. info: None if Triton does not serve its model."""

    asked: Asked
    info: ModelInfo | None


@dataclass(frozen=True, slots=True)
class Document:
    """JSON over HTTP. depth: of its brackets."""

    depth: int


@dataclass(frozen=True, slots=True)
class Load:
    """A load of a model. files: the paths that it overrides."""

    model: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Register:
    """A registration of a system region."""

    name: str
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """What goes on to Triton uses these regions."""

    regions: Regions


@dataclass(frozen=True, slots=True)
class Strict:
    """A message of a stream whose first error is to end it with its status."""


@dataclass(frozen=True, slots=True)
class Rule:
    """harms: whether a subject of type `of` would do it. fixed: the first release that bears it.

    text: what is wrong, and what to do.
    """

    of: type
    harms: Callable[[Any], bool]
    text: str
    fixed: Release | None = None
    error: type[Shielded] = Shielded


def _class_of_text(call: Infer) -> bool:
    outputs = call.info.outputs.values() if call.info else ()
    texts = {output.name for output in outputs if output.datatype == "BYTES"}
    if not texts or not call.asked.has_classes():
        return False
    return not texts.isdisjoint(call.asked.classes()) or ANY in call.asked.classes()


def _file_name(load: Load) -> bool:
    paths = [path.encode(errors="replace") for path in load.files]
    parts = (part for path in paths for part in path.split(b"/"))
    return any(len(part) > NAME_BYTES_MAX for part in parts) or any(
        len(path) > PATH_BYTES_MAX for path in paths
    )


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "class-of-text": Rule(
            Infer,
            _class_of_text,
            "classes are asked of an output of BYTES; ask for it as it is",
            (2, 60),
        ),
        "class-of-nothing": Rule(
            Infer,
            lambda call: call.asked.has_empty_json() and bool(call.asked.classes()),
            "classes are asked of a tensor without elements; ask for it as it is",
        ),
        "file-name": Rule(
            Load,
            _file_name,
            f"a `file:` parameter has a part over {NAME_BYTES_MAX} bytes or is longer than "
            f"{PATH_BYTES_MAX}; shorten it",
            (2, 69),
            ShieldedLoad,
        ),
        "json-depth": Rule(
            Document,
            lambda document: document.depth > DEPTH_MAX,
            f"the JSON is nested more than {DEPTH_MAX} deep; no tensor is",
        ),
        "json-shape": Rule(
            Infer,
            lambda call: call.asked.is_oversized(),
            "a JSON tensor's shape has far more elements than its data; correct the shape",
            (2, 59),
        ),
        "json-unread": Rule(
            Infer,
            lambda call: call.asked.unread,
            f"the JSON inflates to over {INFLATED_BYTES_MAX >> 20} MiB, has over {MEMBERS_MAX} "
            "members that tell of tensors or is long and has escaped letters; send binary tensors",
        ),
        "place-wraps": Rule(
            Infer,
            lambda call: call.asked.places_wrap(),
            "a place in a shared memory region ends beyond 2^62; correct offset and size",
            (2, 58),
        ),
        "region-offset": Rule(
            Register,
            lambda region: any(region.offsets),
            "a region registered with an offset is read in the wrong place; register it at 0 and "
            "use offsets in requests",
            (2, 61),
        ),
        "shrunk-region": Rule(
            Use,
            lambda use: any(not region.is_whole for region in use.regions.values()),
            "a shared memory region is smaller than it was when it was registered; unregister it "
            "and register it again",
        ),
        "strict-stream": Rule(
            Strict,
            lambda _: True,
            "an error of a model on a stream with `triton_grpc_error` can end Triton; leave it "
            "out and read `error_message`",
            (2, 68),
        ),
    }
)


class Shield:
    """The rules that hold now, and the guard of names beside them.

    on_shielded: hears the rule of each request that is refused.
    """

    def __init__(self, on_shielded: Callable[[str], None] = lambda _: None) -> None:
        self.guard = RegionGuard()
        self._on_shielded = on_shielded
        self._enabled = True
        self._allow: frozenset[str] = frozenset()
        self._release: Release | None = None
        self._held: Mapping[type, tuple[tuple[str, Rule], ...]] = {}
        self._choose()

    def adopt(self, *, enabled: bool, allow: Collection[str], guard_regions: bool) -> None:
        """What the policy file says. allow: rules that are not to hold."""
        self._enabled, self._allow = enabled, frozenset(allow)
        self.guard.enabled = guard_regions
        self._choose()

    def connected(self, version: str) -> None:
        """Triton's version as it tells it; every rule holds if it cannot be read."""
        self._release = release_of(version)
        self._choose()

    def holds(self, name: str) -> bool:
        """Whether the rule does."""
        return any(name == held for held, _ in self._held.get(RULES[name].of, ()))

    def require(self, subject: Infer | Document | Load | Register | Use | Strict) -> None:
        """Raises Shielded if a rule says so."""
        for name, rule in self._held.get(type(subject), ()):
            if rule.harms(subject):
                self._on_shielded(name)
                raise rule.error(_in_words(name, rule, subject))

    def _choose(self) -> None:
        held: dict[type, tuple[tuple[str, Rule], ...]] = {}
        for name, rule in RULES.items():
            if self._enabled and name not in self._allow and self._is_needed(rule):
                held[rule.of] = (*held.get(rule.of, ()), (name, rule))
        self._held = held

    def _is_needed(self, rule: Rule) -> bool:
        return self._release is None or rule.fixed is None or self._release < rule.fixed


def release_of(version: str) -> Release | None:
    """`2.51.0` as (2, 51); None if it does not begin so."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?!\d)", version)
    return None if found is None else (int(found[1]), int(found[2]))


def _in_words(name: str, rule: Rule, subject: object) -> str:
    """What, what to do, which rule. A load fails in the words of releases that bear it."""
    mended = "no release" if rule.fixed is None else f"Triton {rule.fixed[0]}.{rule.fixed[1]}"
    text = f"{rule.text} (shield rule '{name}'; mended in {mended})"
    if isinstance(subject, Load):
        return f"failed to load '{subject.model}', failed to poll from model repository: {text}"
    if isinstance(subject, Register):
        return f"failed to register shared memory region '{subject.name}': {text}"
    return text

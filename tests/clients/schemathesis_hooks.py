"""What schemathesis sees at one server, a line of JSON each: hooks, loaded into its process.

Lines go to the file that TRITONSCHED_FOUND names: `{"finding": [operation, what]}` for what a
check found, `{"asked": ..., "answered": ...}` for every request. Rule: it drops only what ends
Triton 2.51, each by a named rule; the same for whoever is asked.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import schemathesis

hook: Callable[[Callable[..., Any]], Callable[..., Any]] = schemathesis.hook  # by its name
DIM_MAX = 1 << 16  # a JSON tensor of 2^40 elements ends Triton before 2.59 (bad_alloc)
BYTES_MAX = 1 << 20
FOUND = Path(os.environ["TRITONSCHED_FOUND"])


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """All members of all objects within."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name), inner
            yield from members(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from members(inner)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)


def has_huge_shape(body: Any) -> bool:
    shapes = (inner for name, inner in members(body) if name == "shape")
    return any(abs(number) > DIM_MAX for shape in shapes for number in numbers(shape))


def has_offset(body: Any) -> bool:
    """A region at an offset reads foreign memory in Triton before 2.61, or ends it."""
    return any(name == "offset" and inner != 0 for name, inner in members(body))


def has_file(body: Any) -> bool:
    """A file name of over 255 bytes ends Triton before 2.69."""
    return any(name.startswith("file:") and len(name.encode()) > 200 for name, _ in members(body))


def has_huge_region(body: Any) -> bool:
    """A region is mapped, whatever its size."""
    sizes = (inner for name, inner in members(body) if name == "byte_size")
    return any(number > BYTES_MAX for size in sizes for number in numbers(size))


def is_verbose(body: Any) -> bool:
    """It would log a page for each request, and nothing else."""
    levels = (inner for name, inner in members(body) if name == "log_verbose_level")
    return any(number != 0 for level in levels for number in numbers(level))


GUARDS = (has_huge_shape, has_offset, has_file, has_huge_region, is_verbose)


@hook
def filter_body(context: Any, body: Any) -> bool:
    return not any(guard(body) for guard in GUARDS)


@hook
def filter_case(context: Any, case: Any) -> bool:
    return not any(guard(case.body) for guard in GUARDS)


def told(**line: Any) -> None:
    with FOUND.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


@hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Every failure is kept, here and in the report."""
    told(finding=[case.operation.label, type(failure).__name__, response.status_code])
    return True


@hook
def after_call(context: Any, case: Any, response: Any) -> None:
    sent = response.request
    body = sent.body or b""
    text = body if isinstance(body, bytes) else str(body).encode()
    headers = {k: v for k, v in sorted(sent.headers.items()) if not k.startswith("X-Schemathesis")}
    path = sent.url.split("/", 3)[-1]
    asked = [sent.method, path, str(headers), hashlib.sha256(text).hexdigest()]
    told(
        asked=hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        operation=case.operation.label,
        request=f"{sent.method} /{path} {headers} {text[:300]!r}",
        answered=[response.status_code, response.headers.get("content-type", [""])[0]],
    )


@hook
def after_network_error(context: Any, case: Any, request: Any) -> None:
    """No answer, or none that can be read, is a finding, too."""
    told(finding=[case.operation.label, "NetworkError", 0])

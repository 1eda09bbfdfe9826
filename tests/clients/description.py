"""The OpenAPI description, and what of it holds for Triton without a sidecar. Rule: what is the
sidecar's own is marked `x-tritonsched` in the document, and only there.
"""

from pathlib import Path
from typing import Any

import yaml

import tritonsched.frontend

PATH = Path(tritonsched.frontend.__file__).with_name("openapi.yaml")
OURS = "x-tritonsched"

Document = dict[str, Any]


def described() -> Document:
    """As it ships."""
    loaded: Document = yaml.safe_load(PATH.read_text())
    return loaded


def operations(document: Document) -> dict[tuple[str, str], Document]:
    """Operations by method in capitals and path."""
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in {"get", "post"}
    }


def resolved(document: Document, node: Any) -> Any:
    """What a reference points to; anything else as it is."""
    if not (isinstance(node, dict) and "$ref" in node):
        return node
    found: Any = document
    for name in node["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def of_triton(document: Document) -> Document:
    """Without what the sidecar adds."""

    def is_ours(node: Any) -> bool:
        target = resolved(document, node)
        return isinstance(target, dict) and bool(target.get(OURS))

    def without(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: without(inner) for name, inner in node.items() if not is_ours(inner)}
        if isinstance(node, list):
            return [without(inner) for inner in node if not is_ours(inner)]
        return node

    made: Document = without(document)
    return made


def with_names(document: Document, **names: tuple[str, ...]) -> Document:
    """With path parameters that can only be these."""
    parameters = dict(document["components"]["parameters"])
    for name, values in names.items():
        parameters[name] = parameters[name] | {"schema": {"type": "string", "enum": list(values)}}
    return document | {"components": document["components"] | {"parameters": parameters}}

"""Records whose `__init__` is written out: it must take what the dataclass' own would."""

import importlib
import inspect
import pkgutil
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import tritonsched


def written_out() -> list[Any]:
    """Dataclasses of the package with an `__init__` of their own."""
    found = []
    for module in pkgutil.walk_packages(tritonsched.__path__, "tritonsched."):
        if any(word in module.name for word in ("__main__", "proof_repository", "emulated_gpu")):
            continue  # a command, and what runs inside Triton
        for made in vars(importlib.import_module(module.name)).values():
            if isinstance(made, type) and made.__module__ == module.name and is_dataclass(made):
                constructor: Any = vars(made)["__init__"]
                if constructor.__code__.co_filename != "<string>":
                    found.append(made)
    return found


def default_of(field: Field[Any]) -> object:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def test_written_out_constructors_take_all_fields_in_order_with_their_defaults() -> None:
    records = written_out()
    assert {"Batch", "InferCall", "Request", "Tensor"} <= {record.__name__ for record in records}
    for record in records:
        _, *taken = inspect.signature(record.__init__).parameters.values()
        wanted = [(field.name, default_of(field)) for field in fields(record) if field.init]
        assert [(one.name, one.default) for one in taken] == wanted, record.__name__

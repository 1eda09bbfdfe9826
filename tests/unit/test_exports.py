"""The public names of the core. Growing the list is a decision."""

import importlib
import inspect
import pkgutil

import tritonsched.core

EXPECTED = {
    "admission": {"is_hopeless", "refusal"},
    "batch": {"Batch", "Completion", "Dispatch", "Expire", "Reject"},
    "latency": {"LatencyProfile"},
    "ledger": {"Ledger"},
    "observers": {"Audience", "Observer"},
    "policy": {"Choice", "Hold", "Policy", "SchedulerView"},
    "request": {"Outcome", "RejectReason", "Request", "SloClass"},
    "scheduler": {"Scheduler"},
    "tuning": {"Tuning"},
    "variant": {"ServerState", "Variant"},
}


def public(module_name: str) -> set[str]:
    module = importlib.import_module(f"tritonsched.core.{module_name}")
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


def test_the_core_offers_what_it_says() -> None:
    for module_name, expected in EXPECTED.items():
        assert expected <= public(module_name), module_name


def test_every_public_name_of_the_core_has_a_docstring() -> None:
    """Classes and functions that a reader meets first."""
    bare: list[str] = []
    for found in pkgutil.walk_packages(tritonsched.core.__path__, "tritonsched.core."):
        module = importlib.import_module(found.name)
        assert module.__doc__, found.name
        names = public(found.name.removeprefix("tritonsched.core."))
        classes = {name: getattr(module, name) for name in names}
        bare += [n for n, value in classes.items() if inspect.isclass(value) and not value.__doc__]
    assert not bare

"""What the README describes exists, and what exists is described."""

import re
from collections.abc import Iterator
from pathlib import Path

import typer.main
from pydantic import BaseModel

from tritonsched import errors
from tritonsched.cli import app
from tritonsched.config.load import parse_policy
from tritonsched.config.schema import PolicyFile
from tritonsched.core.policies import POLICIES
from tritonsched.metrics import COUNTERS, GAUGES, HISTOGRAMS

README = (Path(__file__).parent.parent / "README.md").read_text()
# Reasons that stand for a family or never leave the process as a refusal.
INNER_REASONS = {
    "bad-request",
    "overloaded",
    "unavailable",
    "backend-error",
    "region-fault",
    "cuda-fault",
    "bad-config",
    "startup",
}


def section(title: str) -> str:
    """The text of one second-level section."""
    match = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL
    )
    assert match, title
    return match.group(1)


def first_cells(text: str) -> set[str]:
    """The code words in the first column of the section's tables."""
    rows = re.findall(r"^\| ([^|]*`[^|]*) \|", text, re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of the schema, with NAME for free ones."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        arguments = getattr(inner, "__args__", ())
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")
        elif arguments and isinstance(arguments[-1], type) and issubclass(arguments[-1], BaseModel):
            yield from keys(arguments[-1], f"{prefix}{name}.NAME.")
        else:
            yield prefix + name


def leaves(base: type[errors.TritonschedError]) -> Iterator[type[errors.TritonschedError]]:
    yield base
    for child in base.__subclasses__():
        yield from leaves(child)


def test_every_policy_key_is_described_and_exists() -> None:
    assert first_cells(section("Policy file")) == set(keys(PolicyFile))


def test_the_example_policy_loads() -> None:
    match = re.search(r"```yaml\n(.*?)```", section("Policy file"), re.DOTALL)
    assert match
    assert parse_policy(match.group(1)).class_of_model("classify_lite2") == "gold"


def test_every_metric_is_described_and_exists() -> None:
    names = {f"tritonsched_{name}" for name in (*COUNTERS, *GAUGES, *HISTOGRAMS)}
    assert first_cells(section("Metrics and health")) == names


def test_every_reason_is_described_and_exists_with_its_codes() -> None:
    expected = {
        (leaf.reason, str(leaf.http_status), leaf.grpc_code)
        for leaf in leaves(errors.TritonschedError)
        if leaf.reason not in INNER_REASONS
    }
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \| (\w+) \|", section("Refusals"), re.MULTILINE)
    assert set(rows) == expected


def test_every_option_of_serve_is_described_and_exists() -> None:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]  # a group
    options = {name for p in command.params for name in p.opts if name.startswith("--")}
    assert first_cells(section("Options of `tritonsched serve`")) == options - {"--help"}


def test_every_rule_is_named() -> None:
    for name in POLICIES:
        assert f"`{name}`" in README


def test_every_option_of_profile_is_described_and_exists() -> None:
    command = typer.main.get_command(app).commands["profile"]  # type: ignore[attr-defined]  # a group
    options = {name for p in command.params for name in p.opts if name.startswith("--")}
    described = first_cells(section("Profiles: `tritonsched profile`"))
    assert described == options - {"--help"}


def test_every_option_of_simulate_is_described_and_exists() -> None:
    command = typer.main.get_command(app).commands["simulate"]  # type: ignore[attr-defined]  # a group
    options = {name for p in command.params for name in p.opts if name.startswith("--")}
    described = first_cells(section("Compare rules: `tritonsched simulate`"))
    assert described == options - {"--help"}


def test_every_option_of_replay_is_described_and_exists() -> None:
    command = typer.main.get_command(app).commands["replay"]  # type: ignore[attr-defined]  # a group
    options = {name for p in command.params for name in p.opts if name.startswith("--")}
    described = first_cells(section("Before it goes live: `tritonsched replay`"))
    assert described == options - {"--help"}

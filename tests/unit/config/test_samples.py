"""Every policy file that the repository ships is a good one."""

from pathlib import Path

import pytest

from tritonsched.checking import schema_text
from tritonsched.config.load import load_policy

ROOT = Path(__file__).parents[3]
SAMPLES = sorted((ROOT / "deploy" / "policies").glob("*.yaml"))


def test_there_is_a_sample_for_each_kind_of_place() -> None:
    names = {path.stem for path in SAMPLES}
    assert {"edge", "mixed-tenants", "batch-interactive", "low-power"} <= names


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_sample_loads_and_its_models_name_known_classes(path: Path) -> None:
    policy = load_policy(path)
    assert set(map(policy.class_of_model, ("mlp", "echo"))) <= set(policy.slo_classes())


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_sample_names_the_schema_for_editors(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=policy.schema.json"


def test_the_schema_beside_the_samples_is_what_the_command_prints() -> None:
    """Made by `tritonsched schema`."""
    assert (ROOT / "deploy" / "policies" / "policy.schema.json").read_text() == schema_text()

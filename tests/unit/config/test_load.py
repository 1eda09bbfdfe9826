"""The policy file: what it may say, and how each fault is told."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonsched.config.load import FILE_BYTES_MAX, load_policy, parse_policy
from tritonsched.config.schema import PolicyFile
from tritonsched.core.request import NEVER_NS
from tritonsched.errors import ConfigError

GOOD = """\
classes:
  gold: {deadline_ms: 30, weight: 2.0}
  silver:
    deadline_ms: 100
default_class: silver
models:
  classify_lite0: {default_class: gold}
scheduler: {policy: edf, window_ms: 1.5, rows_max: 16}
limits: {queue_requests_max: 10}
transport: {mode: inline}
"""


def test_a_full_file_becomes_classes_and_tuning() -> None:
    policy = parse_policy(GOOD)
    classes = policy.slo_classes()
    assert classes["gold"].relative_deadline_ns == 30_000_000
    assert classes["gold"].weight == 2.0
    assert classes["default"].relative_deadline_ns == NEVER_NS
    assert policy.class_of_model("classify_lite0") == "gold"
    assert policy.class_of_model("anything") == "silver"
    tuning = policy.tuning()
    assert (tuning.window_ns, tuning.rows_cap, tuning.queue_requests_max) == (1_500_000, 16, 10)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}"])
def test_an_empty_file_is_the_default_policy(text: str) -> None:
    assert parse_policy(text) == PolicyFile()


FAULTS = {
    "unknown key with a suggestion": (
        "clases: {}\n",
        "p.yaml:1:1: clases: unknown key; did you mean 'classes'?",
    ),
    "unknown nested key": (
        "classes:\n  gold: {deadline: 3}\n",
        "p.yaml:2:10: classes.gold.deadline: unknown key; did you mean 'deadline_ms'?",
    ),
    "negative deadline": (
        "classes:\n  gold:\n    deadline_ms: -1\n",
        "p.yaml:3:18: classes.gold.deadline_ms: Input should be greater than 0",
    ),
    "a number as text": (
        'classes:\n  gold:\n    deadline_ms: "30"\n',
        "p.yaml:3:18: classes.gold.deadline_ms: Input should be a valid number",
    ),
    "not a number": (
        "classes:\n  gold:\n    deadline_ms: .nan\n",
        "p.yaml:3:18: classes.gold.deadline_ms: Input should be a finite number",
    ),
    "a key twice": (
        "classes: {}\nclasses: {}\n",
        "p.yaml:2:1: classes: key stands twice",
    ),
    "a key that is no text": ("1: {}\n", "p.yaml:1:1: a key must be text; quote it"),
    "an alias": ("classes: &a {}\nmodels: *a\n", "p.yaml:1:10: aliases and anchors"),
    "an unknown policy": (
        "scheduler: {policy: fifo}\n",
        "p.yaml:1:21: scheduler.policy: policy 'fifo' is unknown; "
        "use one of cikm, clipper, clockwork, disbatcher, edf, fcfs, lite, lookahead, nexus,",
    ),
    "an unknown class": (
        "default_class: gold\n",
        "p.yaml:1:16: default_class: class 'gold' is not in classes (default)",
    ),
    "broken YAML": ("classes: [\n", "p.yaml:2:1: not YAML:"),
    "a control character": ("a: \x01\n", "p.yaml:1:4: not YAML:"),
    "a list at the top": ("- 1\n", "p.yaml:1:1: Input should be a valid dictionary"),
    "too deep": ("[" * 100_000, "p.yaml:1:51: nested deeper than 50"),
    "a tag": ("classes: !!python/object:os.system {}\n", "p.yaml:1:10: tags are not allowed"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_told_with_its_place(name: str) -> None:
    text, expected = FAULTS[name]
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, "p.yaml")
    assert expected in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy("classes:\n  gold: {deadline_ms: 0, weight: 0}\nlimits: {what: 1}\n", "p.yaml")
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_policy(tmp_path / "none.yaml")


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 3"):
        load_policy(path)


def test_a_huge_file_is_refused_unparsed(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load_policy(path)


def test_a_good_file_is_read_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    assert load_policy(path) == parse_policy(GOOD)


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_a_config_error(text: str) -> None:
    """No other exception ever leaves the loader."""
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_policy(text), PolicyFile)

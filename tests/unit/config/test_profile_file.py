"""Profiles as files: what is written is read, what is wrong is told with its place, nothing
crashes.
"""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.profiling.profiles import HARDWARE, SHA, point, profile, times
from tritonsched.config.profile_file import (
    MODELS_MAX,
    POINTS_MAX,
    Gpu,
    load_profile,
    of_other_hardware,
    parse_profile,
)
from tritonsched.config.reader import FILE_BYTES_MAX, TOKENS_MAX
from tritonsched.errors import ConfigError
from tritonsched.profiling.text import profile_text

GOOD = profile_text(profile(m=times(point(1, 5.5, 6.5), point(8, 9.0, 12.0), files=SHA)))
FIRST = "models.m.points.0"
TIME = f"{FIRST}.p50_ms"
FALLS = "p50_ms, p90_ms, p99_ms, max_ms must not fall"
ANCHORS = "aliases and anchors are not allowed; write the value twice"
TWICE = "  cores: 2\n  cores: 3"
HEX = "^[0-9a-f]{64}$"
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=30)
@given(name=words, cpu=words, command=words, p50_us=st.integers(1, 10**9), runs=st.integers(1, 999))
def test_what_is_written_is_read_again(
    name: str, cpu: str, command: str, p50_us: int, runs: int
) -> None:
    """Whatever the words are: quotes, control characters, other scripts."""
    p50_ms = round(p50_us / 1000, 3)
    made = profile(**{name: times(point(1, p50_ms).model_copy(update={"runs": runs}))})
    made = made.model_copy(
        update={
            "hardware": HARDWARE.model_copy(update={"cpu": cpu}),
            "made": made.made.model_copy(update={"command": command}),
        }
    )
    assert parse_profile(profile_text(made)) == made


def test_the_largest_profile_that_may_be_written_stays_within_the_readers_bounds() -> None:
    points = [point(rows, 123_456.789, 234_567.891) for rows in range(60_000, 60_000 + POINTS_MAX)]
    one = profile(**{"m" * 64: times(*points, files=SHA)})
    text, head = profile_text(one), profile_text(profile())
    tokens, few = (sum(1 for _ in yaml.scan(each)) for each in (text, head))
    assert len(head) + MODELS_MAX * (len(text) - len(head)) <= FILE_BYTES_MAX
    assert few + MODELS_MAX * (tokens - few) <= TOKENS_MAX


def test_the_table_is_the_medians_and_the_margin_that_of_the_middle_size() -> None:
    """One size that was measured in a busy moment says nothing of the others."""
    rare = point(4, 7.0, 7.7).model_copy(update={"p99_ms": 50.0, "max_ms": 60.0})
    model = times(point(1, 5.0, 5.5), point(2, 6.0, 66.0), rare)
    assert model.table_ns() == {1: 5_000_000, 2: 6_000_000, 4: 7_000_000}
    assert model.margin_ns() == 700_000


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("p50_ms: 5.500", "p50_ms: .nan", f"22:27: {TIME}: Input should be a finite number"),
        ("p50_ms: 5.500", "p50_ms: -5", f"22:27: {TIME}: Input should be greater than 0"),
        ("p50_ms: 5.500", "p50_ms: 7", f"22:9: {FIRST}: {FALLS}"),
        ("rows: 8", "rows: 1", "22:7: models.m.points: rows 1 after rows 1; they must rise"),
        ("rows: 8", "row: 8", "23:10: models.m.points.1.row: unknown key; did you mean 'rows'?"),
        ("profile: 1", "profile: 2", "2:10: profile: Input should be 1"),
        ("cores: 2", "cores: two", "9:10: hardware.cores: Input should be a valid integer"),
        ("  cores: 2", TWICE, "10:3: hardware.cores: key stands twice; first in line 9"),
        (SHA, "abc", f"20:20: models.m.config_sha256: String should match pattern '{HEX}'"),
        ("models:", "models: &a", f"16:9: {ANCHORS}"),
    ],
)  # fmt: skip
def test_each_fault_is_told_with_its_place(was: str, now: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_profile(GOOD.replace(was, now), "p.yaml")
    assert f"p.yaml:{told}" in str(caught.value).splitlines()


@settings(max_examples=30)
@given(cut=st.integers(0, len(GOOD) - 2))
def test_a_profile_cut_anywhere_is_refused_or_whole(cut: int) -> None:
    """Never read as something else: what is left either misses something, or only shows less."""
    with contextlib.suppress(ConfigError):
        assert parse_profile(GOOD[:cut]).models["m"].points[0] == point(1, 5.5, 6.5)


@settings(max_examples=30)
@given(
    text=st.text(max_size=200)
    | st.lists(st.sampled_from("[{:-, \n\t!&*'\"%"), max_size=80).map("".join)
)
def test_no_text_crashes_the_reader(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_profile(text)


def test_hostile_text_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"deep.yaml:1:51: nested deeper than 50"):
        load_profile(path)
    path.write_bytes(b"x" * 300_000)
    with pytest.raises(ConfigError, match="larger than"):
        load_profile(path)


def test_each_part_of_the_hardware_counts_and_is_named() -> None:
    assert of_other_hardware(HARDWARE, HARDWARE) == []
    other = HARDWARE.model_copy(
        update={"cpu": "B", "cores": 4, "gpus": [Gpu(name="A GPU", driver="1.3")]}
    )
    assert of_other_hardware(HARDWARE, other) == [
        "cpu: 'A CPU' there, 'B' here",
        "cores: 2 there, 4 here",
        "gpus: 'A GPU (driver 1.2)' there, 'A GPU (driver 1.3)' here",
    ]
    bare = HARDWARE.model_copy(update={"gpus": []})
    assert of_other_hardware(HARDWARE, bare) == ["gpus: 'A GPU (driver 1.2)' there, 'none' here"]

"""Each planted fault is found where it stands; hostile text is refused before it costs anything."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tritonsched.config.faults import FORMATS, Fault, PolicyFaults
from tritonsched.config.load import parse_policy
from tritonsched.config.reader import DEPTH_MAX, FAULTS_MAX, TOKENS_MAX, read_text, unsafe

PLANTED = (Path(__file__).parent / "planted.yaml").read_text()


def planted() -> Iterator[tuple[int, int, str, str]]:
    """line, column, path and a part of the message, as the file itself says behind each fault."""
    for line, text in enumerate(PLANTED.splitlines(), start=1):
        _, found, expected = text.partition("#! ")
        if found:
            column, path, part = expected.split(" | ")
            yield line, int(column), path, part


def faults_of(text: str) -> tuple[Fault, ...]:
    with pytest.raises(PolicyFaults) as caught:
        parse_policy(text, "p.yaml")
    return caught.value.faults


def test_all_forty_planted_faults_are_told_with_line_column_path_and_advice() -> None:
    expected = list(planted())
    found = faults_of(PLANTED)
    assert [(f.line, f.column, f.path) for f in found] == [e[:3] for e in expected]
    assert [f.message for f, e in zip(found, expected, strict=True) if e[3] not in f.message] == []
    assert len(expected) >= 40


def test_the_formats_say_the_same() -> None:
    faults = [Fault(2, 3, "a.b", "50% of x,\ny"), Fault(4, 1, "", "z")]
    assert FORMATS["text"]("p.yaml", faults[1:]) == "p.yaml:4:1: z"
    first, second = json.loads(FORMATS["json"]("p.yaml", faults))
    assert first == {
        "file": "p.yaml", "line": 2, "column": 3, "path": "a.b", "message": "50% of x,\ny",
    }  # fmt: skip
    assert second["path"] == ""
    assert FORMATS["github"]("a,b:c.yaml", faults).splitlines() == [
        "::error file=a%2Cb%3Ac.yaml,line=2,col=3::a.b: 50%25 of x,%0Ay",
        "::error file=a%2Cb%3Ac.yaml,line=4,col=1::z",
    ]


HOSTILE = {
    "brackets": ("[" * 100_000, DEPTH_MAX + 2, "nested deeper than 50"),
    "braces": ("{a: " * 50_000, 4 * DEPTH_MAX + 4, "nested deeper than 50"),
    "an alias bomb": ("a: &a [x, x]\nb: [*a, *a]\n" * 1000, 8, "aliases and anchors"),
    "a tag": ("a: !!python/object/apply:os.system [x]\n", 8, "tags are not allowed"),
    "a hundred thousand items": ("- 1\n" * 60_000, TOKENS_MAX + 2, "YAML tokens"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_after_a_bounded_number_of_tokens(name: str) -> None:
    text, steps_max, message = HOSTILE[name]
    steps = itertools.count()

    def counted() -> Iterator[yaml.Token]:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            next(steps)
            yield token

    fault = unsafe(counted())
    assert fault is not None
    assert message in fault.message
    assert next(steps) <= steps_max


def test_faults_are_told_up_to_a_bound() -> None:
    text = "".join(f"k{n}: 1\n" for n in range(FAULTS_MAX + 50))
    assert len(faults_of(text)) == FAULTS_MAX


def test_quoted_words_and_numbers_are_what_they_look_like() -> None:
    policy = parse_policy('classes: {"no": {weight: 2}}\ndefault_class: "no"\n')
    assert policy.class_of_model("m") == "no"


def test_bytes_that_are_no_text_have_a_line_and_a_column(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"classes: {}\nab\xff\n")
    with pytest.raises(PolicyFaults, match=r"p\.yaml:2:3: not UTF-8 at byte 14"):
        read_text(path)

"""The pictures and the classifiers' folders hold together."""

from pathlib import Path

import numpy as np
import pytest

from tests import pictures

REPOSITORY = Path(__file__).parents[2] / "model_repository"
CLASSIFIERS = [REPOSITORY / f"classify_lite{number}" for number in (0, 1, 2)]
WEIGHTS_BYTES_MAX = 20_000_000


@pytest.mark.parametrize("name", pictures.NAMES)
def test_a_picture_has_the_declared_form(name: str) -> None:
    """What the models take: uint8 [260, 260, 3]; and a real picture, not a plain surface."""
    picture = pictures.load(name)
    assert picture.dtype == np.uint8
    assert picture.shape == (260, 260, 3)
    assert picture.std() > 20


def test_the_bare_bytes_are_the_first_picture() -> None:
    """cat.uint8 can be posted as it is."""
    assert (pictures.FOLDER / "cat.uint8").read_bytes() == pictures.load("cat").tobytes()


@pytest.mark.parametrize("name", pictures.NAMES)
def test_a_photograph_shows_its_picture(name: str) -> None:
    """JPEG of tests/data and packaged picture differ by compression only (mean of 255 levels)."""
    difference = pictures.photograph(name).astype(int) - pictures.load(name)
    assert np.abs(difference).mean() < 4


def test_each_label_is_one_that_the_classifiers_know() -> None:
    """A label expected by a test can be said by a model."""
    for home in CLASSIFIERS:
        labels = (home / "labels.txt").read_text().splitlines()
        assert len(labels) == 1000
        assert set(pictures.LABELS.values()) <= set(labels)


def test_the_classifiers_differ_in_their_network_only() -> None:
    """One serving file and one list of labels, in three folders because Triton wants it so."""
    for part in ("1/model.py", "labels.txt", "LICENSE"):
        assert len({(home / part).read_bytes() for home in CLASSIFIERS}) == 1, part


def test_weights_come_with_their_licence_and_stay_small() -> None:
    """Apache-2.0 asks for its text, the attribution and a note of change beside the weights."""
    for home in CLASSIFIERS:
        assert "Apache License" in (home / "LICENSE").read_text()
        notice = (home / "NOTICE").read_text()
        assert "ML\nIllustrated" in notice
        assert "Changed here" in notice
        assert "MIT License" in notice
    assert sum((home / "1/model.onnx").stat().st_size for home in CLASSIFIERS) < WEIGHTS_BYTES_MAX

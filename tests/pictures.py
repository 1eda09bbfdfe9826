"""The four real pictures that ship with the package, and what a classifier must call them.

Rule: one form only, uint8 [260, 260, 3] RGB, as the `classify_*` models declare it. Sources and
licences: tritonsched/data/pictures/README.md.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

FOLDER: Final = files("tritonsched") / "data" / "pictures"
PHOTOGRAPHS: Final = Path(__file__).parent / "data"
SIDE: Final = 260


@cache
def archive() -> dict[str, npt.NDArray[np.generic]]:
    """pictures.npz: `pictures` uint8 [4, 260, 260, 3], `names` and `labels` [4]."""
    with (FOLDER / "pictures.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


NAMES: Final = tuple(str(name) for name in archive()["names"])
LABELS: Final = dict(zip(NAMES, (str(label) for label in archive()["labels"]), strict=True))


def load(name: str) -> Picture:
    """One picture, uint8 [260, 260, 3]."""
    return np.asarray(archive()["pictures"][NAMES.index(name)], np.uint8)


def photograph(name: str) -> Picture:
    """tests/data/NAME.jpg decoded, cut to its centred square and scaled: uint8 [260, 260, 3]."""
    from PIL import Image, ImageOps  # a dependency of development only

    with Image.open(PHOTOGRAPHS / f"{name}.jpg") as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE)), np.uint8)

"""Make the pictures of the tests, the benchmark and the calibration from scikit-image's data.

Rule: only pictures that scikit-image declares CC0 or public domain are used, and the same file
makes the same bytes. A *photograph* is a source picture, cut to its box where the table has one;
a *picture* is a photograph in the classifiers' declared form: UINT8 [260, 260, 3], RGB, the
largest centred square scaled by bicubic interpolation.

    python deploy/models/build_pictures.py            # rewrites the files named below

writes `tests/data/NAME.jpg` (photographs), `tritonsched/data/pictures/pictures.npz` (all pictures
with names and labels) and `tritonsched/data/pictures/cat.uint8` (one picture, bytes alone).
Versions: deploy/models/requirements.txt.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image, ImageOps

Picture = npt.NDArray[np.uint8]

SIDE = 260  # what Lite2 takes: the largest of the three, so that no variant has to scale up
JPEG_QUALITY = 90
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Source:
    """One picture that is shipped: where it comes from and what a classifier must say."""

    name: str
    skimage: str
    label: str
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom; None: the whole


SOURCES = (
    # Filled by the cat: uncut, the smallest network wavers between two breeds (0.37 to 0.33).
    Source("cat", "chelsea", "Egyptian cat", (40, 0, 300, 260)),
    Source("coffee", "coffee", "espresso"),
    Source("camera", "camera", "tripod"),
    # A Falcon 9 at lift-off: ImageNet has no launcher, "missile" is its nearest class.
    Source("rocket", "rocket", "missile", (230, 120, 430, 320)),
)

# Calibration also sees textures and night: ranges must hold for more than well-lit objects.
CALIBRATION = (
    "chelsea", "coffee", "camera", "rocket", "astronaut", "clock", "hubble_deep_field", "retina",
    "brick", "grass", "gravel",
)  # fmt: skip


def open_source(name: str) -> Image.Image:
    """A picture of scikit-image, RGB."""
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def photograph(source: Source) -> Image.Image:
    """The source, cut to its box."""
    whole = open_source(source.skimage)
    return whole.crop(source.box) if source.box else whole


def picture(image: Image.Image) -> Picture:
    """The declared form: uint8 [SIDE, SIDE, 3]."""
    return np.asarray(ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC), np.uint8)


def calibration_crops(count: int, seed: int) -> Picture:
    """Random square crops of the calibration sources, half of them mirrored.

    Returns uint8 [count, SIDE, SIDE, 3]; the same count and seed give the same crops.
    """
    rng = random.Random(seed)  # noqa: S311  # crops, not secrets
    sources = [open_source(name) for name in CALIBRATION]
    return np.stack([_crop(sources[i % len(sources)], rng) for i in range(count)])


def _crop(image: Image.Image, rng: random.Random) -> Picture:
    side = int(min(image.size) * rng.uniform(0.5, 1.0))
    left, top = (rng.randint(0, length - side) for length in image.size)
    crop = image.crop((left, top, left + side, top + side))
    return picture(ImageOps.mirror(crop) if rng.random() < 0.5 else crop)


def main() -> None:
    """Write photographs and pictures below the root of the repository."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this)")
    root = parser.parse_args().root
    photographs, data = root / "tests/data", root / "tritonsched/data/pictures"
    for folder in (photographs, data):
        folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        photograph(source).save(photographs / f"{source.name}.jpg", quality=JPEG_QUALITY)
    pictures = np.stack([picture(photograph(source)) for source in SOURCES])
    np.savez_compressed(
        data / "pictures.npz",
        pictures=pictures,
        names=np.array([source.name for source in SOURCES]),
        labels=np.array([source.label for source in SOURCES]),
    )
    (data / "cat.uint8").write_bytes(pictures[0].tobytes())


if __name__ == "__main__":
    main()

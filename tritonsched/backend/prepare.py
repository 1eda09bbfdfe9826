"""What a model repository needs before Triton can load it, and the text of emulated models.
`python -m tritonsched.backend.prepare REPOSITORY [BUILD_DIR]` is the set-up step.

Rule: what is large and can be computed is made at set-up, seeded and atomically, never committed:
a repository is either as it was or complete.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tritonsched.backend.emulated_gpu.build import CompilerMissing, build

MLP_WEIGHTS: Final = Path("mlp", "1", "weights.npy")
MLP_SHAPE: Final = (3, 2048, 2048)
MLP_SEED: Final = 20_260_101
EMULATED_ROWS_MAX: Final = 32


def prepare_repository(repository: Path) -> list[Path]:
    """Make what is missing in the repository; returns the files made.

    Raises OSError if the repository cannot be written.
    """
    weights = repository / MLP_WEIGHTS
    if not weights.parent.is_dir() or _is_complete(weights):
        return []
    _save(weights, mlp_weights())
    return [weights]


def mlp_weights() -> NDArray[np.float32]:
    """float32 [3, 2048, 2048]: He et al. 2015, variance 2 / fan-in, so that activations keep their
    size through the ReLUs.
    """
    rng = np.random.default_rng(MLP_SEED)
    scale = np.float32(np.sqrt(2.0 / MLP_SHAPE[1]))
    return rng.standard_normal(MLP_SHAPE, dtype=np.float32) * scale


def _is_complete(weights: Path) -> bool:
    try:
        found = np.load(weights, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return bool(found.shape == MLP_SHAPE and found.dtype == np.float32)


def _save(path: Path, array: NDArray[np.float32]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as scratch:
        unfinished = Path(scratch) / path.name
        np.save(unfinished, array, allow_pickle=False)
        os.replace(unfinished, path)  # atomic


def emulated_model_config(
    name: str,
    *,
    gpu: str,
    a_us: float,
    b_us: float,
    max_batch_size: int = EMULATED_ROWS_MAX,
    dims: tuple[int, ...] = (3, 32, 32),
    dynamic_batching: str | None = None,
    with_stats: bool = True,
    **params: object,
) -> str:
    """The config.pbtxt of a model on an emulated GPU.

    a_us, b_us: a batch takes a + b * rows microseconds. dims: of one row. dynamic_batching: the
    body of Triton's `dynamic_batching { }`; "" for its defaults, None for no dynamic batcher.
    with_stats: the second output STATS. params: further parameters (`table`, `jitter_pct`,
    `control_file`, `seed`, …), written with `str`.
    """
    values: dict[str, object] = {"gpu": gpu, "a_us": a_us, "b_us": b_us, **params}
    values.setdefault("tritonsched_device", gpu)
    lines = [
        f'name: "{name}"',
        'backend: "emulated_gpu"',
        f"max_batch_size: {max_batch_size}",
        f'input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: {list(dims)} }} ]',
        'output [ { name: "OUTPUT" data_type: TYPE_FP32 dims: [ 2 ] } ]',
    ]
    if with_stats:
        lines.append('output [ { name: "STATS" data_type: TYPE_FP64 dims: [ 4 ] } ]')
    if dynamic_batching is not None:
        lines.append(f"dynamic_batching {{ {dynamic_batching} }}")
    lines.append("instance_group [ { count: 1 kind: KIND_CPU } ]")
    lines.extend(
        f'parameters {{ key: "{key}" value: {{ string_value: "{_quoted(value)}" }} }}'
        for key, value in values.items()
    )
    return "\n".join(lines) + "\n"


def _quoted(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"')


def write_emulated_model(repository: Path, name: str, config: str) -> Path:
    """Add a model of that configuration to a repository; returns its directory."""
    model = repository / name
    (model / "1").mkdir(parents=True)  # Triton wants a version directory, empty as it may be
    (model / "config.pbtxt").write_text(config, encoding="utf-8")
    return model


def main(arguments: list[str]) -> None:
    """Prepare a repository and, given a directory for it, build the emulated GPU."""
    repository, *build_dirs = arguments
    made = prepare_repository(Path(repository))
    for directory in build_dirs:
        try:
            made.append(build(Path(directory)))
        except CompilerMissing as error:
            sys.stdout.write(f"{error}; until then it runs as a python model\n")
    for path in made:
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])

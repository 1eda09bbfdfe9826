"""The kit's model repository: written anew for each run, for a GPU or, to rehearse, for the CPU."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parent / "torch_model.py"
SEED = 20_170
ROWS_MAX = 32


@dataclass(frozen=True, slots=True)
class Net:
    """A model of the repository. net: of torchvision. dims, out: of a row in and out, FP32."""

    name: str
    net: str
    dims: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def out_bytes(self) -> int:
        """Of a row of the output."""
        return 4 * math.prod(self.out)


PICTURE = (3, 224, 224)
NETS = (
    Net("gpu_copy", "identity", PICTURE, PICTURE),
    Net("resnet50", "resnet50", PICTURE, (1000,)),
    Net("mobilenet_v3", "mobilenet_v3_large", PICTURE, (1000,)),
    Net("efficientnet_b0", "efficientnet_b0", PICTURE, (1000,)),
)


def config_text(net: Net, *, gpu: int | None) -> str:
    """config.pbtxt. gpu: None for the CPU."""
    group = "kind: KIND_CPU" if gpu is None else f"kind: KIND_GPU gpus: [ {gpu} ]"
    parameters = {"net": net.net, "seed": str(SEED), "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
    lines = [
        "# Random weights, seeded: times are the network's, answers mean nothing.",
        f'name: "{net.name}"',
        'backend: "python"',
        f"max_batch_size: {ROWS_MAX}",
        f'input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: {list(net.dims)} }} ]',
        f'output [ {{ name: "OUTPUT" data_type: TYPE_FP32 dims: {list(net.out)} }} ]',
        f"instance_group [ {{ count: 1 {group} }} ]",
    ]
    for key, value in parameters.items():
        entry = f'key: "{key}" value: {{ string_value: "{value}" }}'
        lines.append(f"parameters {{ {entry} }}")
    return "\n".join(lines) + "\n"


def write_repository(directory: Path, nets: tuple[Net, ...] = NETS, *, gpu: int | None) -> None:
    """`directory` holds these models and nothing else."""
    shutil.rmtree(directory, ignore_errors=True)
    for net in nets:
        place = directory / net.name / "1"
        place.mkdir(parents=True)
        shutil.copy(MODEL, place / "model.py")
        (directory / net.name / "config.pbtxt").write_text(config_text(net, gpu=gpu))

"""What the machine has, before anything is installed or started. Rule: a finding a question, in
order; what cannot be asked because of an earlier one is told as such.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonsched.backend.cuda import Cuda, load
from tritonsched.backend.cuda_check import Ask, ask_process, ipc_fault
from tritonsched.backend.hardware import NVIDIA_SMI, gpus
from tritonsched.errors import CudaFault

PYTHONS = ((3, 11), (3, 12))  # numpy 1.26, which Triton's python backend needs, has no later wheels
ENVIRONMENT_WAIT_S = 300.0  # a first import of torch reads gigabytes
_ASK_TORCH = """
import json, sys
import numpy, torch, torchvision
seen = torch.cuda.is_available()
print(json.dumps({"python": sys.version.split()[0], "numpy": numpy.__version__,
    "torch": torch.__version__, "torchvision": torchvision.__version__, "cuda": torch.version.cuda,
    "gpu": torch.cuda.get_device_name(0) if seen else ""}))
"""


@dataclass(frozen=True, slots=True)
class Found:
    """One answer. ok: the kit can go on with it."""

    name: str
    ok: bool
    text: str


def python_version(version: tuple[int, int] = sys.version_info[:2]) -> Found:
    """Of this process, with which the environments are made."""
    words = f"{version[0]}.{version[1]}"
    ok = version in PYTHONS
    return Found("Python", ok, words if ok else f"{words}; 3.11 or 3.12 is needed: set PYTHON=")


def driver(nvidia_smi: str = NVIDIA_SMI) -> Found:
    """NVIDIA's own word."""
    seen = gpus(nvidia_smi)
    if not seen:
        return Found("driver", False, f"{nvidia_smi} is not there, fails, or shows no GPU")
    names = ", ".join(gpu.name for gpu in seen)
    return Found("driver", True, f"{seen[0].driver}: {names}")


def bindings(get: Callable[[], Cuda] = load) -> tuple[Found, Cuda | None]:
    """CUDA as the sidecar will use it."""
    try:
        cuda = get()
        names = cuda.devices()
    except CudaFault as fault:
        hint = "; cuda-bindings 13 needs driver 580 or newer, 12 an older one"
        return Found("CUDA", False, f"{fault}{hint if 'Insufficient' in str(fault) else ''}"), None
    return Found("CUDA", True, ", ".join(names)), cuda


def interprocess(cuda: Cuda | None, ask: Ask = ask_process) -> Found:
    """Memory of one process in another, on the first GPU."""
    if cuda is None:
        return Found("CUDA between processes", False, "not asked: no CUDA")
    fault = ipc_fault(cuda, 0, ask)
    return Found("CUDA between processes", not fault, fault or "works both ways on gpu:0")


def first(
    get: Callable[[], Cuda] = load, ask: Ask = ask_process, nvidia_smi: str = NVIDIA_SMI
) -> Iterator[Found]:
    """Everything that needs no environment of the kit's."""
    yield python_version()
    yield driver(nvidia_smi)
    found, cuda = bindings(get)
    yield found
    yield interprocess(cuda, ask)


def environment(directory: Path, *, on_gpu: bool) -> tuple[Found, dict[str, Any]]:
    """The Python that Triton's models run with, and its versions."""
    name = "the models' environment"
    python = directory / "bin" / "python"
    try:
        done = subprocess.run(  # the kit's own environment
            [python, "-I", "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=ENVIRONMENT_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Found(name, False, f"{directory} does not run ({error}); see `make gpu-check`"), {}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        return Found(name, False, f"{directory}: {last}"), {}
    versions: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    words = f"torch {versions['torch']}, torchvision {versions['torchvision']}"
    if on_gpu and not versions["gpu"]:
        words += f": torch sees no GPU (built for CUDA {versions['cuda']})"
        return Found(name, False, words), {}
    words += f", numpy {versions['numpy']}, {versions['gpu'] or 'CPU'}"
    return Found(name, True, words), versions

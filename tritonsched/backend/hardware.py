"""What machine this is, as far as execution times depend on it. Rule: never raises; what cannot be
found out is told as such.
"""

import os
import shutil
import subprocess
from pathlib import Path

from tritonsched.config.profile_file import Gpu, Hardware

CPUINFO = Path("/proc/cpuinfo")
UNKNOWN_CPU = "unknown"
NVIDIA_SMI = "nvidia-smi"
NVIDIA_SMI_WAIT_S = 10.0  # a driver that hangs must not keep a sidecar from starting
GPUS_MAX = 64


def hardware(cpuinfo: Path = CPUINFO, nvidia_smi: str = NVIDIA_SMI) -> Hardware:
    """This machine. cores: those that this process may use."""
    cores = len(os.sched_getaffinity(0))
    return Hardware(cpu=cpu_name(cpuinfo), cores=cores, gpus=gpus(nvidia_smi))


def cpu_name(cpuinfo: Path) -> str:
    """The processor's model. Source: proc(5); other architectures have other keys."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return UNKNOWN_CPU
    found = dict(reversed([_pair(line) for line in lines]))  # the first processor's word counts
    for key in ("model name", "Model", "cpu", "CPU part"):
        if found.get(key):
            return found[key][:256]
    return UNKNOWN_CPU


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def gpus(nvidia_smi: str) -> list[Gpu]:
    """The GPUs of the machine, in nvidia-smi's order; none if it is not there or fails."""
    program = shutil.which(nvidia_smi)
    if program is None:
        return []
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(  # noqa: S603  # found by name, no argument is anybody's input
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_WAIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    pairs = [line.rpartition(",") for line in ran.stdout.splitlines() if "," in line]
    return [
        Gpu(name=name.strip()[:256], driver=driver.strip()[:256])
        for name, _, driver in pairs[:GPUS_MAX]
    ]

"""Compiling the emulated GPU. Rule: the library's name holds a hash of its sources and of the
command, so that it is built once and never stale.

A C compiler is a tool of the system, not of the lock file; without one the caller falls back to
`model.py`, which Triton runs as a python-based backend of the same name.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tritonsched.errors import StartupError

BACKEND_NAME: Final = "emulated_gpu"
LIBRARY_NAME: Final = f"libtriton_{BACKEND_NAME}.so"  # the name that Triton looks for
SOURCE_DIR: Final = Path(__file__).parent
FALLBACK_MODEL: Final = SOURCE_DIR / "model.py"
FLAGS: Final = ("-std=c11", "-O2", "-Wall", "-shared", "-fPIC", "-fvisibility=hidden")
LIBRARIES: Final = ("-lm", "-lpthread")
BUILD_TIMEOUT_S: Final = 120.0  # it takes about one second; a stuck compiler must not hang a start


class CompilerMissing(StartupError):
    """There is no `cc` in PATH."""


class BuildFailed(StartupError):
    """`cc` refused the source; the text holds its message."""


def sources() -> list[Path]:
    """The C files, in the order in which they are compiled."""
    return sorted(SOURCE_DIR.glob("*.c"))


def _fingerprint() -> str:
    digest = hashlib.sha256(" ".join((*FLAGS, *LIBRARIES, platform.machine())).encode())
    for path in [*sources(), *sorted(SOURCE_DIR.glob("*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def build(out_dir: Path) -> Path:
    """Compile the backend into `out_dir` unless it is there already; returns the library's path.

    Raises CompilerMissing without `cc`, BuildFailed if it refuses the source.
    """
    library = out_dir / f"{BACKEND_NAME}-{_fingerprint()}.so"
    if library.exists():
        return library
    compiler = shutil.which("cc")
    if compiler is None:
        raise CompilerMissing(
            "no C compiler `cc` in PATH, which builds the emulated GPU; "
            "install one: apt install gcc libc6-dev"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".build-") as scratch:
        unfinished = Path(scratch) / library.name
        _compile(compiler, unfinished)
        os.replace(unfinished, library)  # atomic; two builders end with one library
    return library


def _compile(compiler: str, library: Path) -> None:
    command = [compiler, *FLAGS, "-o", str(library), *map(str, sources()), *LIBRARIES]
    try:
        done = subprocess.run(  # noqa: S603  # the compiler of the system, our own source
            command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise BuildFailed(
            f"{compiler} did not build the emulated GPU in {BUILD_TIMEOUT_S:g} s"
        ) from exc
    if done.returncode != 0:
        raise BuildFailed(f"{compiler} did not build the emulated GPU:\n{done.stderr.strip()}")

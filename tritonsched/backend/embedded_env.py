"""What an embedded Triton needs of the disk: the wheel's files, a backend directory, environment
variables, its command line. Rule: it only reads the environment and writes into `run_dir`.

Source: observed on Triton 2.51 from nvidia-pytriton 0.7.0: the python backend takes the first
`python3` in PATH for its models; it looks for its stub beside itself; a python-based backend is
refused if `libtriton_python.so` is a link out of the backend directory; the libraries' RPATH points
beside the wheel, so that a copy elsewhere needs LD_LIBRARY_PATH.
"""

import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tritonsched.backend.emulated_gpu import build as emulated_gpu
from tritonsched.errors import StartupError

PROOF_REPOSITORY: Final = Path(__file__).parent / "proof_repository"
PROOF_MODEL: Final = "tritonsched_echo"
ECHO_MODEL: Final = "echo"
TOKEN_VARIABLE: Final = "TRITONSCHED_EMBEDDED"  # noqa: S105  # marks processes, opens nothing
PROBE_TIMEOUT_S: Final = 30.0  # asking a Python for two paths


class TritonMissing(StartupError):
    """The Triton environment is not there, or lacks a part."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the parts of the nvidia-pytriton wheel are.

    environment: the virtual environment. libpython_dirs: where its Python's shared library is,
    which the stub links to; empty if Python is linked statically and the system's is used.
    """

    environment: Path
    server: Path
    libraries: Path
    python_backend: Path
    stub: Path
    libpython_dirs: tuple[Path, ...]


def find_installation(environment: Path) -> Installation:
    """Locate Triton in a virtual environment. Raises TritonMissing."""
    python = environment / "bin" / "python"
    if not python.exists():
        raise TritonMissing(
            f"no Triton environment in {environment}; make it with `make install`, or name a "
            "running Triton with --triton-grpc and --triton-http"
        )
    version, libdir, *library = _ask(python)
    packages = environment / "lib" / f"python{version}" / "site-packages"
    wheel = packages / "pytriton" / "tritonserver"
    found = Installation(
        environment=environment,
        server=wheel / "bin" / "tritonserver",
        libraries=packages / "nvidia_pytriton.libs",
        python_backend=wheel / "backends" / "python",
        stub=wheel / "python_backend_stubs" / version / "triton_python_backend_stub",
        libpython_dirs=tuple(Path(libdir) for name in library if ".so" in name),
    )
    for path in (found.server, found.libraries, found.python_backend, found.stub):
        if not path.exists():
            raise TritonMissing(
                f"{environment} lacks {path.relative_to(environment)} of nvidia-pytriton 0.7.0; "
                "make the environment anew with `make install`"
            )
    return found


def _ask(python: Path) -> list[str]:
    """Version, library directory, and name of the shared library (if any) of a Python."""
    script = (
        "import sys, sysconfig as s\n"
        "print('%d.%d' % sys.version_info[:2], s.get_config_var('LIBDIR') or '',\n"
        "      s.get_config_var('INSTSONAME') or '', sep='\\n')"
    )
    try:
        done = subprocess.run(  # noqa: S603  # the environment's own Python
            [python, "-I", "-S", "-c", script],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise TritonMissing(f"{python} does not run ({exc}); make it with `make install`") from exc
    return done.stdout.splitlines()


@dataclass(frozen=True, slots=True)
class Backends:
    """The backend directory of a run. note: one line for the operator, "" if all is as usual."""

    directory: Path
    note: str


def lay_out_backends(installation: Installation, run_dir: Path, build_dir: Path) -> Backends:
    """Make `run_dir/backends`: Triton's python backend with its stub, and the emulated GPU, which
    is compiled into `build_dir` if it is not there.

    Raises StartupError if the emulated GPU does not compile, OSError if run_dir cannot be written.
    """
    directory = run_dir / "backends"
    shutil.rmtree(directory, ignore_errors=True)
    python = directory / "python"
    python.mkdir(parents=True)
    for path in installation.python_backend.iterdir():
        if path.is_file():
            shutil.copy(path, python)
    (python / installation.stub.name).symlink_to(installation.stub.resolve())
    emulated = directory / emulated_gpu.BACKEND_NAME
    emulated.mkdir()
    try:
        library = emulated_gpu.build(build_dir)
    except emulated_gpu.CompilerMissing as exc:
        shutil.copy(emulated_gpu.FALLBACK_MODEL, emulated)
        return Backends(directory, f"the emulated GPU runs as a python model: {exc}")
    shutil.copy(library, emulated / emulated_gpu.LIBRARY_NAME)
    return Backends(directory, "")


def triton_environment(installation: Installation, run_dir: Path, token: str) -> dict[str, str]:
    """The environment variables of Triton and its stubs."""
    libraries = [installation.libraries, *installation.libpython_dirs]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {
        # One thread a model: OpenBLAS's idle threads spin, which takes the CPU from the sidecar.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        "PATH": f"{installation.environment / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": ":".join([*map(str, libraries), *([inherited] if inherited else [])]),
        "TRITONSCHED_GPU_LOCK_DIR": str(run_dir),
        TOKEN_VARIABLE: token,
    }


def proof_model(repository: Path) -> tuple[str, list[Path]]:
    """The identity model that the start-up proof may use, and the repositories to load.

    The repository's own `echo` serves if it is ours, unchanged; else the packaged one is added.
    """
    ours = PROOF_REPOSITORY / PROOF_MODEL
    if all(
        _same(repository / ECHO_MODEL / part, ours / part)
        for part in ("config.pbtxt", Path("1", "model.py"))
    ):
        return ECHO_MODEL, [repository]
    return PROOF_MODEL, [repository, PROOF_REPOSITORY]


def _same(left: Path, right: Path) -> bool:
    return left.is_file() and left.read_bytes() == right.read_bytes()


def missing_libpython(installation: Installation) -> str:
    """What to install if the stub's libpython is nowhere; "" if it is found."""
    name = f"libpython{installation.stub.parent.name}.so.1.0"
    standard = sysconfig.get_config_var("MULTIARCH") or ""
    places = [*installation.libpython_dirs, Path("/usr/lib"), Path("/usr/lib", standard)]
    places += [Path("/usr/local/lib"), Path("/lib", standard)]
    if any((place / name).exists() for place in places):
        return ""
    return f"{name} is missing: apt install libpython{installation.stub.parent.name}"

"""Nothing of an embedded Triton outlives its sidecar: who was started, and cleaning up after it.

Rule: a process is ours only if its environment holds our token, read again through a pidfd before
each signal, so that no foreign process with a reused id is ever hit. A run directory belongs to one
sidecar at a time (flock), so what a state file names at start is always an orphan's.

Source: observed on Triton 2.51: stubs outlive a killed server for seconds, and if they are killed
too, their regions stay in /dev/shm; regions are called by the prefix given on the command line.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import select
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tritonsched.backend.embedded_env import TOKEN_VARIABLE
from tritonsched.errors import StartupError

STATE_FILE: Final = "embedded.json"
LOCK_FILE: Final = "embedded.lock"
SHM_DIR: Final = Path("/dev/shm")  # noqa: S108  # where POSIX shared memory is on Linux
TOKEN_PREFIX: Final = "tritonsched-"  # noqa: S105  # a name, not a secret
STATE_BYTES_MAX: Final = 4096
KILL_TIMEOUT_S: Final = 10.0  # after SIGKILL; longer only if the kernel cannot end the process


class RunDirInUse(StartupError):
    """Another sidecar works in this run directory."""


@dataclass(frozen=True, slots=True)
class RunState:
    """One embedded Triton. token: in the environment of all its processes, and the prefix of its
    shared memory regions. pid, start_ticks: of the server, for a person who reads the file; 0 while
    it is being started.
    """

    token: str
    pid: int = 0
    start_ticks: int = 0


def new_state() -> RunState:
    """A token that no other run has."""
    return RunState(token=f"{TOKEN_PREFIX}{secrets.token_hex(8)}")


def with_process(state: RunState, pid: int) -> RunState:
    """The state of the run once its server has a process id."""
    return RunState(token=state.token, pid=pid, start_ticks=start_ticks(pid) or 0)


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat: clock ticks from boot to the process's start."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory; the kernel lets go if this process dies. Raises RunDirInUse."""
    run_dir.mkdir(parents=True, exist_ok=True)
    file = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise RunDirInUse(
            f"{run_dir} is in use by another sidecar; stop it, or give this one another --run-dir"
        ) from exc
    finally:
        os.close(file)


def save_state(run_dir: Path, state: RunState) -> None:
    """Write the state file, atomically."""
    unfinished = run_dir / f"{STATE_FILE}.unfinished"
    unfinished.write_text(json.dumps(asdict(state)), encoding="ascii")
    unfinished.replace(run_dir / STATE_FILE)


def load_state(run_dir: Path) -> RunState | None:
    """The state that an earlier run left; None if there is none, or none that can be trusted."""
    path = run_dir / STATE_FILE
    try:
        with path.open(encoding="ascii") as file:
            fields = json.loads(file.read(STATE_BYTES_MAX))
        token = fields["token"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # The token becomes a file name pattern: a short or strange one could match foreign regions.
    is_ours = isinstance(token, str) and token.startswith(TOKEN_PREFIX)
    random_part = token.removeprefix(TOKEN_PREFIX) if is_ours else ""
    if len(random_part) != 16 or not random_part.isalnum():
        return None
    return RunState(token=token, pid=int(fields.get("pid", 0)))


def _has_token(pid: int, token: str) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{TOKEN_VARIABLE}={token}".encode() in variables


def processes_of(token: str) -> list[int]:
    """Server and stubs of a run, by the token in their environment."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and _has_token(pid, token)]


def _kill(pid: int, token: str, timeout_s: float) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # From here on the handle means one process, whatever becomes of its number.
        if _has_token(pid, token):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], timeout_s)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def _sweep(token: str) -> list[str]:
    swept = []
    for pid in processes_of(token):
        _kill(pid, token, KILL_TIMEOUT_S)
        swept.append(f"process {pid}")
    for region in SHM_DIR.glob(f"{token}*"):
        region.unlink(missing_ok=True)
        swept.append(f"shared memory {region.name}")
    return swept


async def sweep(run_dir: Path, state: RunState) -> list[str]:
    """End the processes of a run, remove its regions and its state file; returns what there was.

    Blocks a worker thread, not the loop, until the processes are gone.
    """
    swept = await asyncio.to_thread(_sweep, state.token)
    (run_dir / STATE_FILE).unlink(missing_ok=True)
    return swept

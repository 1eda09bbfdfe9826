"""Does CUDA interprocess memory work here? Rule: by two processes, as with Triton, and no Triton.

Containers without a common pid namespace, Jetsons and WSL have CUDA and refuse this. One process
writes a pattern into device memory and hands over the handle; the other opens it, changes every
byte and answers what it saw; the first looks whether the change has arrived.
`python -m tritonsched.backend.cuda_check` is the other one: question on stdin, answer on stdout.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tritonsched.backend.cuda import GRAIN_BYTES, Cuda, HostMemory, load
from tritonsched.errors import CudaFault

PATTERN = bytes(range(251)) * 17
WAIT_S = 60.0  # a first use of CUDA compiles and maps for seconds

Ask = Callable[[dict[str, Any]], dict[str, Any]]


def ipc_fault(cuda: Cuda, device: int, ask: Ask) -> str:
    """What is wrong; "" if the memory went both ways. ask: question to the other process."""
    try:
        there = cuda.allocate(device, GRAIN_BYTES)
        try:
            return _exchanged(cuda, device, there, ask)
        finally:
            cuda.free(device, there)
    except CudaFault as fault:
        return str(fault)


def _exchanged(cuda: Cuda, device: int, there: int, ask: Ask) -> str:
    host = cuda.allocate_host(device, len(PATTERN))
    try:
        host.view[:] = PATTERN
        _copy(cuda, device, there, host.address)
        seen = ask({"device": device, "handle": cuda.handle(device, there).hex()})
        if seen.get("fault"):
            return f"another process: {seen['fault']}"
        if seen.get("sha256") != hashlib.sha256(PATTERN).hexdigest():
            return "another process opened the handle and read other bytes"
        _copy(cuda, device, host.address, there)
        if bytes(host.view) != PATTERN[::-1]:
            return "what another process wrote did not arrive"
        return ""
    finally:
        cuda.free_host(host)


def answer(cuda: Cuda, question: dict[str, Any]) -> dict[str, Any]:
    """The other process' part: read, turn around, write."""
    device = int(question["device"])
    try:
        there = cuda.open_handle(device, bytes.fromhex(question["handle"]))
        try:
            host = cuda.allocate_host(device, len(PATTERN))
            try:
                return {"sha256": _turned(cuda, device, there, host)}
            finally:
                cuda.free_host(host)
        finally:
            cuda.close_handle(device, there)
    except CudaFault as fault:
        return {"fault": str(fault)}


def _turned(cuda: Cuda, device: int, there: int, host: HostMemory) -> str:
    _copy(cuda, device, host.address, there)
    seen = bytes(host.view)
    host.view[:] = seen[::-1]
    _copy(cuda, device, there, host.address)
    return hashlib.sha256(seen).hexdigest()


def _copy(cuda: Cuda, device: int, target: int, source: int) -> None:
    stream = cuda.stream(device)
    try:
        stream.copy(target, source, len(PATTERN))
        stream.finish()
    finally:
        stream.close()


def ask_process(question: dict[str, Any]) -> dict[str, Any]:
    """Ask a process of its own. The handle goes by stdin: arguments are everybody's to read."""
    command = [sys.executable, "-m", "tritonsched.backend.cuda_check"]
    try:
        done = subprocess.run(  # noqa: S603  # this very module
            command,
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=True,
        )
        return dict(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"fault": f"{error}"}


def main() -> None:
    """Answer one question."""
    question = json.load(sys.stdin)
    try:
        told = answer(load(), question)
    except CudaFault as fault:
        told = {"fault": str(fault)}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()

"""A Triton and a sidecar in front of it, for clients that run as processes of their own. Rule: a
client of another environment is a program that prints what it saw, never an import.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.integration.sidecars import ServeProcess, serve_process
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv-clients" / "bin"


class ClientFailed(Exception):
    """A client's process ended badly; the text says how."""


@contextlib.asynccontextmanager
async def triton_of(repository: Path, *models: str) -> AsyncIterator[EmbeddedTriton]:
    """A fresh Triton with these models; all of the repository if none is named."""
    with tempfile.TemporaryDirectory() as name:
        config = EmbeddedConfig(
            repository=repository,
            environment=ROOT / ".venv-triton",
            run_dir=Path(name) / "run",
            build_dir=ROOT / ".run" / "build",
            models=models,
            control_mode="explicit",
        )
        async with EmbeddedTriton(config) as triton:
            yield triton


@contextlib.asynccontextmanager
async def sidecar_of(triton: EmbeddedTriton, *arguments: str) -> AsyncIterator[ServeProcess]:
    """`tritonsched serve` in front of it."""
    given = ("--triton-http", triton.http_address, "--triton-grpc", triton.grpc_address)
    async with serve_process(*given, *arguments, cwd=ROOT) as sidecar:
        yield sidecar


async def output_of(
    *command: str, limit_s: float, codes: frozenset[int] = frozenset({0}), cwd: Path = ROOT
) -> bytes:
    """What it prints. Raises ClientFailed if it takes too long or ends with another code."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(limit_s):
            output, errors = await process.communicate()
    except TimeoutError as exc:
        raise ClientFailed(f"{command[0]} took longer than {limit_s:g} s") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in codes:
        said = (output + errors).decode(errors="replace")[-3000:]
        raise ClientFailed(f"{command[0]} ended with {process.returncode}: {said}")
    return output

"""KServe's REST and gRPC clients at Triton and at the sidecar: every call brings the same.

    make kserve                    # sets their environment up, then this

Twice through the sidecar: as it comes, and with windows in which everything merges that may.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.stand import CLIENTS, output_of, sidecar_of, triton_of
from tests.differential.conftest import MERGING
from tests.differential.models import write_repository

PROGRAM = str(Path(__file__).with_name("kserve_calls.py"))
LIMIT_S = 120.0
FEWEST = 40  # calls: fewer were not all made

Found = dict[str, Any]


async def asked(http: str, grpc: str) -> Found:
    """What the clients see there, by call."""
    printed = await output_of(str(CLIENTS / "python"), PROGRAM, http, grpc, limit_s=LIMIT_S)
    found: Found = json.loads(printed)
    return found


def differences(theirs: Found, mine: Found) -> list[str]:
    """A line for each call that is not the same on both sides."""
    return [
        f"{name}\n  Triton:  {str(theirs.get(name))[:800]}\n  sidecar: {str(mine.get(name))[:800]}"
        for name in sorted(theirs.keys() | mine.keys())
        if name not in theirs or name not in mine or theirs[name] != mine[name]
    ]


async def compare(directory: Path) -> int:
    """Print what differs; returns how much."""
    write_repository(directory / "models")
    policy = directory / "merging.yaml"
    policy.write_text(MERGING)
    differ = 0
    async with triton_of(directory / "models") as triton:
        theirs = await asked(triton.http_address, triton.grpc_address)
        assert len(theirs) >= FEWEST, f"only {len(theirs)} calls were made"
        for name, arguments in (("as it comes", ()), ("merging", ("--policy", str(policy)))):
            async with sidecar_of(triton, *arguments) as sidecar:
                found = differences(theirs, await asked(sidecar.http, sidecar.grpc))
            said = "".join(f"DIFFERS {line}\n" for line in found)
            sys.stdout.write(f"{said}{name}: {len(theirs)} calls, {len(found)} differ\n")
            differ += len(found)
    return differ


def main() -> None:
    """Exit status 1 if a call differs."""
    with tempfile.TemporaryDirectory() as name:
        sys.exit(1 if asyncio.run(compare(Path(name))) else 0)


if __name__ == "__main__":
    main()

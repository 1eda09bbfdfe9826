"""schemathesis at Triton and at the sidecar: the same seed, the same set of findings.

    make schemathesis              # sets its environment up, then this; about four minutes

It makes requests from the OpenAPI description, less what is the sidecar's own, and checks the
answers against it. Each side has a Triton of its own, because some requests change it. What is
found is Triton's business; that both sides have the same is ours.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.description import described, of_triton, with_names
from tests.clients.stand import CLIENTS, ROOT, output_of, sidecar_of, triton_of

HOOKS = "tests.clients.schemathesis_hooks"
LIMIT_S = 900.0
FEWEST = 500  # requests: fewer say little
NAMES: dict[str, tuple[str, ...]] = {
    "model": ("echo", "nobody"),
    "version": ("1", "2"),
    "repository": ("other",),
    "region": ("none",),
}
SKIPPED = (
    # Loading echo takes Triton a second each; `tests/differential` loads and unloads.
    "load",
    "unload",
)


@dataclass(frozen=True, slots=True)
class Found:
    """findings: operation and check. answers: status and content type by request."""

    findings: frozenset[tuple[Any, ...]]
    answers: dict[str, tuple[Any, ...]]
    requests: dict[str, str]


def read(path: Path) -> Found:
    """What the hooks wrote."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    asked = [line for line in lines if "asked" in line]
    return Found(
        frozenset(tuple(line["finding"]) for line in lines if "finding" in line),
        {line["asked"]: tuple(line["answered"]) for line in asked},
        {line["asked"]: line["request"] for line in asked},
    )


async def run(address: str, directory: Path, name: str, examples: int, seed: int) -> Found:
    """One run of schemathesis."""
    description, found = directory / "openapi.json", directory / f"{name}.jsonl"
    description.write_text(json.dumps(with_names(of_triton(described()), **NAMES)))
    skipped = [f"--exclude-operation-id={operation}" for operation in SKIPPED]
    await output_of(
        "env", f"TRITONSCHED_FOUND={found}", f"SCHEMATHESIS_HOOKS={HOOKS}", f"PYTHONPATH={ROOT}",
        str(CLIENTS / "st"), "run", str(description), "--url", f"http://{address}",
        "--phases", "examples,coverage,fuzzing", "--checks", "all", "--continue-on-failure",
        "--max-examples", str(examples), "--seed", str(seed), "--generation-deterministic",
        "--no-shrink", "--suppress-health-check", "all",
        "--workers", "1", "--request-timeout", "60", *skipped,
        limit_s=LIMIT_S, codes=frozenset({0, 1}), cwd=directory,
    )  # fmt: skip
    return read(found)


def differences(theirs: Found, mine: Found) -> Iterator[str]:
    """A line for each finding of one side alone, and each request answered in two ways."""
    for side, alone in (
        ("Triton", theirs.findings - mine.findings),
        ("the sidecar", mine.findings - theirs.findings),
    ):
        yield from (f"only at {side}: {finding}" for finding in sorted(alone))
    for asked in theirs.answers.keys() & mine.answers.keys():
        a, b = theirs.answers[asked], mine.answers[asked]
        if a != b:
            yield f"Triton {a}, the sidecar {b}: {theirs.requests[asked]}"


async def compare(directory: Path, examples: int, seed: int, *, listed: bool) -> int:
    """Print what differs; returns how much."""
    repository = ROOT / "model_repository"
    async with triton_of(repository, "echo") as triton:
        theirs = await run(triton.http_address, directory, "triton", examples, seed)
        assert triton.is_running, "schemathesis has ended Triton: a guard is missing in the hooks"
    async with triton_of(repository, "echo") as triton, sidecar_of(triton) as sidecar:
        mine = await run(sidecar.http, directory, "sidecar", examples, seed)
        assert triton.is_running, "schemathesis has ended Triton through the sidecar"
    both = len(theirs.answers.keys() & mine.answers.keys())
    assert both >= FEWEST, f"only {both} requests went to both"
    if listed:
        sys.stdout.write("".join(f"Triton: {finding}\n" for finding in sorted(theirs.findings)))
    found = list(differences(theirs, mine))
    sys.stdout.write("".join(f"DIFFERS {line}\n" for line in found))
    sys.stdout.write(
        f"requests: {len(theirs.answers)} to Triton, {len(mine.answers)} to the sidecar, {both} the"
        f" same; findings: {len(theirs.findings)}, {len(mine.findings)}; {len(found)} differ\n"
    )
    return len(found)


def main() -> None:
    """Exit status 1 if a finding differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=40, help="requests an operation, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="also print what Triton's findings are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        differ = asyncio.run(
            compare(Path(name), options.examples, options.seed, listed=options.list)
        )
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()

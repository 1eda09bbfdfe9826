"""What needs an NVIDIA GPU, in one go, with one report. `make gpu-check`.

    make gpu-check                              # looks, makes .venv-gpu, runs, writes the report
    python -m tests.gpu --first                 # only looks; installs and starts nothing
    python -m tests.gpu --rehearse --out DIR    # the same run on the CPU, without CUDA

Exit codes: 0 everything was done and all answers are equal; 1 there is a GPU and something failed
on it; 3 something that is needed first is not there: it is said, and nothing was run.
"""

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.gpu import found, live, report
from tests.gpu.clients import visited
from tests.gpu.live import KitFault, Stand
from tests.gpu.repository import NETS, write_repository
from tritonsched.backend.cuda_region import Transport
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.hardware import hardware
from tritonsched.errors import TritonschedError

ROOT = Path(__file__).parents[2]
NOT_THERE = 3
FAILED = 1
READY_S = 600.0  # torch, weights and a first run of four networks
RULES = ("fcfs", "edf", "lite")


def main(arguments: list[str] | None = None) -> int:
    """The exit code; words go to standard output."""
    options = parsed(arguments)
    seen = [] if options.rehearse else list(found.first())
    versions: dict[str, Any] = {}
    if not options.first and all(entry.ok for entry in seen):
        env, versions = found.environment(options.env, on_gpu=not options.rehearse)
        seen.append(env)
    for entry in seen:
        say(f"{'well' if entry.ok else 'MISSING':<8} {entry.name}: {entry.text}")
    if not all(entry.ok for entry in seen):
        say("nothing was run: the kit needs what is missing above")
        return NOT_THERE
    if options.first:
        return 0
    made = begun(options, [asdict(entry) for entry in seen], versions)
    code = asyncio.run(run(options, made))
    for path in report.write(made, options.out, stem(made, rehearsal=options.rehearse)):
        say(f"wrote {path}")
    say(made["outcome"])
    return code


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    parser.add_argument("--first", action="store_true", help="only look")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, without CUDA")
    parser.add_argument("--env", type=Path, default=Path(".venv-gpu"), help="Python of the models")
    parser.add_argument("--out", type=Path, default=Path("deploy/profiles"))
    parser.add_argument("--run-dir", type=Path, default=Path(".run/gpu"))
    parser.add_argument("--sizes", default="1,3,8,32", help="batch sizes")
    parser.add_argument("--models", default="", help="by comma; all if absent")
    parser.add_argument("--repeat", type=int, default=50, help="batches for a figure")
    parser.add_argument("--seconds", type=float, default=10.0, help="of load for a rule")
    options = parser.parse_args(arguments)
    if options.rehearse and options.out == parser.get_default("out"):
        parser.error("--rehearse needs --out: deploy/profiles is for real machines")
    return options


def begun(
    options: argparse.Namespace, seen: list[dict[str, Any]], versions: dict[str, Any]
) -> dict[str, Any]:
    """The report before the run."""
    head = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "made": {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "tritonsched": version("tritonsched"),
            "commit": commit or "unknown",
            "command": " ".join(["python -m tests.gpu", *sys.argv[1:]]),
        },
        "rehearsal": options.rehearse,
        "outcome": "not finished",
        "hardware": hardware().model_dump(),
        "found": seen,
        "versions": versions,
    }


def stem(made: dict[str, Any], *, rehearsal: bool) -> str:
    """`gpu-nvidia-h200`: the report's files."""
    gpus = made["hardware"]["gpus"]
    name = "rehearsal" if rehearsal else gpus[0]["name"] if gpus else "unknown"
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


async def run(options: argparse.Namespace, made: dict[str, Any]) -> int:
    """All steps on one Triton; `made` grows. Returns the exit code."""
    wanted = [name for name in options.models.split(",") if name]
    nets = tuple(net for net in NETS if not wanted or net.name in wanted)
    repository = options.run_dir / "models"
    write_repository(repository, nets, gpu=None if options.rehearse else 0)
    config = EmbeddedConfig(
        repository=repository,
        environment=options.env,
        run_dir=options.run_dir,
        ready_timeout_s=READY_S,
        build_dir=ROOT / ".run" / "build",
    )
    try:
        async with EmbeddedTriton(config) as triton:
            live.require_loaded(triton)
            stand = Stand(
                triton=triton,
                nets=nets,
                tested="system" if options.rehearse else "cuda",
                device="cpu:0" if options.rehearse else "gpu:0",
                sizes=tuple(map(int, options.sizes.split(","))),
                repeat=options.repeat,
                seconds=options.seconds,
            )
            return await steps(stand, options, made)
    except (KitFault, TritonschedError) as error:
        made["outcome"] = f"FAILED: {error}"
        return FAILED


async def steps(stand: Stand, options: argparse.Namespace, made: dict[str, Any]) -> int:
    """Equal answers first: figures of wrong answers are worth nothing."""
    say("comparing answers …")
    made["equal"] = await live.equal(stand)
    if not all(entry["equal"] for entry in made["equal"]):
        made["outcome"] = "FAILED: answers differ between transports"
        return FAILED
    say("asking as clients with regions of their own …")
    is_cuda = stand.tested == "cuda"
    given = ("--transport", stand.tested)
    visit = await visited(stand.triton, stand.nets[0], cuda=is_cuda, arguments=given)
    made["clients"] = [visit]
    if not visit["equal"] or not visit["batches"].get(stand.tested):
        made["outcome"] = "FAILED: clients' own regions, see below"
        return FAILED
    names: tuple[Transport, ...] = ("inline", "system", "cuda")
    say("timing transports …")
    made["transports"] = await live.transports(stand, names[:2] if options.rehearse else names)
    net, full = stand.nets[-1], max(stand.sizes)
    full_ms = next(
        entry["p50_ms"]
        for entry in made["transports"]
        if (entry["model"], entry["rows"], entry["transport"]) == (net.name, full, stand.tested)
    )
    say("loading rules …")
    pairs = [*((rule, stand.tested) for rule in RULES), (RULES[-1], "inline")]
    made["policies"] = await live.policies(stand, net, full_ms, pairs, options.run_dir)
    say("profiling …")
    made["profile"] = await profiled(stand, options, made)
    made["outcome"] = "all answers equal; all steps done"
    return 0


async def profiled(
    stand: Stand, options: argparse.Namespace, made: dict[str, Any]
) -> dict[str, str]:
    """`tritonsched profile` on this Triton. Raises KitFault."""
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out / f"{stem(made, rehearsal=options.rehearse)}.yaml"
    triton = stand.triton
    command = [
        "profile", "--triton-http", triton.http_address, "--triton-grpc", triton.grpc_address,
        "--transport", stand.tested, "--rows", ",".join(map(str, stand.sizes)),
        "--repository", str(options.run_dir / "models"), "--out", str(out),
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tritonsched", *command)
    if await process.wait():
        raise KitFault(f"tritonsched {' '.join(command)} ended with {process.returncode}")
    return {"command": f"tritonsched {' '.join(command)}", "file": out.name}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)

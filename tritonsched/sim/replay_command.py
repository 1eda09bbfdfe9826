"""`tritonsched replay`: a recording and policy files in; a table, a page or JSON out.

Rule: whatever could not be used of the recording is told on standard error, and how far the replay
of the old policy agrees with what really happened stands under every table.
Exit 0: done; 2: no recording, no policy file, or nothing to write to.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tritonsched.config.load import load_policy
from tritonsched.config.recorded import Recording, read_recording
from tritonsched.config.schema import PolicyFile
from tritonsched.core.request import Outcome
from tritonsched.errors import ConfigError
from tritonsched.sim.replay import (
    OLD,
    Agreement,
    Run,
    S,
    Traffic,
    agreement,
    recorded,
    replayed,
)
from tritonsched.sim.replay_page import page
from tritonsched.sim.telling import refuse, say, write

HEAD = ("class", "policy", "arrived", "in time/s", "utility/s", "missed", "refused", "why refused")
ALL = "all"
OFF_MAX = 0.02  # of the on-time share, above which the replay is not to be trusted
POLICIES_MAX = 8


def replay(
    file: Annotated[Path, typer.Argument(help="What `serve --record FILE` wrote.")],
    *,
    policy: Annotated[
        list[Path] | None, typer.Option(help="Policy file to try; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise of execution times.")] = 1,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with the table and charts.")
    ] = None,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the figures as JSON; - for standard output."),
    ] = None,
) -> None:
    """Show what recorded traffic would have come to under other policies."""
    try:
        recording = read_recording(file)
        tried = [(str(path), load_policy(path)) for path in policy or []]
    except ConfigError as error:
        refuse(str(error))
    if len(tried) > POLICIES_MAX:
        refuse(f"--policy: {len(tried)} files; at most {POLICIES_MAX} are compared at once")
    traffic = Traffic(recording)
    if not traffic.requests:
        refuse(f"{file}: no batch of any recorded model was executed, so nothing can be replayed")
    for line in warnings(file, traffic):
        say(line)
    runs, agreed = _run(traffic, tried, seed)
    _show(recording, runs, agreed, html, json_path)


def _run(
    traffic: Traffic, tried: Sequence[tuple[str, PolicyFile]], seed: int
) -> tuple[list[Run], Agreement]:
    real = recorded(traffic)
    old = replayed(traffic, OLD, traffic.recording.policy, seed=seed)
    new = [replayed(traffic, name, policy, seed=seed) for name, policy in tried]
    return [real, old, *new], agreement(real, old)


def _show(
    recording: Recording,
    runs: Sequence[Run],
    agreed: Agreement,
    html: Path | None,
    json_path: Path | None,
) -> None:
    cells = list(rows(runs))
    notes = [about(recording), in_words(agreed), *of_streams(recording, runs)]
    if html is not None:
        write(html, page(runs, HEAD, cells, notes))
    if json_path is not None:
        write(json_path, json.dumps(as_dict(runs, agreed), indent=1) + "\n")
    if json_path == Path("-"):
        return
    made = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in HEAD:
        left = name in ("class", "policy", "why refused")
        made.add_column(name, justify="left" if left else "right", no_wrap=name != "why refused")
    for row in cells:
        made.add_row(*row)
    console = Console(highlight=False)
    console.print(made)
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)


def warnings(file: Path, traffic: Traffic) -> Iterator[str]:
    """What of the recording was not used, or is not as it was."""
    recording = traffic.recording
    yield from recording.faults
    if recording.fault_count > len(recording.faults):
        yield f"{file}: and {recording.fault_count - len(recording.faults)} more such lines"
    if recording.fault_count:
        yield f"{file}: {recording.fault_count} lines could not be used; the rest is replayed"
    if recording.orphans:
        yield (
            f"{file}: {recording.orphans} ends of requests whose arrival was not recorded "
            "(before its begin, or dropped)"
        )
    for model, count in sorted(traffic.left_out.items()):
        yield (
            f"{file}: {count} requests of model '{model}' are left out: no batch of it was measured"
        )
    if recording.policies > 1:
        yield (
            f"{file}: the policy changed {recording.policies - 1} times while recording; "
            f"'{OLD}' is the first one all the time"
        )


def about(recording: Recording) -> str:
    return (
        f"recorded {recording.started} by tritonsched {recording.version}: "
        f"{len(recording.arrivals)} arrivals in {recording.duration_ns / S:.1f} s, "
        f"{len(recording.batches)} batches, {recording.files} files"
    )


def in_words(agreed: Agreement) -> str:
    real, replay_ = agreed.on_time
    text = (
        f"{OLD} replayed against recorded: {agreed.same:.1%} of {agreed.requests} requests end the "
        f"same way; in time {real:.1%} recorded, {replay_:.1%} replayed"
    )
    if agreed.off > OFF_MAX:
        text += f"; more than {OFF_MAX:.0%} apart, so compare with '{OLD}', not with 'recorded'"
    return text


def of_streams(recording: Recording, runs: Sequence[Run]) -> Iterator[str]:
    """How many streams had their guarantee; nothing where none asked for one."""
    if recording.reserved:
        kept = ", ".join(f"{run.name} {run.granted}" for run in runs)
        asked = len(recording.reserved)
        yield f"of {asked} streams that asked for a guarantee were granted: {kept}"


def rows(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    """A line a class and policy, then the sums if there are several classes."""
    classes = sorted({name for run in runs for name in run.account.submitted})
    for name in [*classes, *([ALL] if len(classes) > 1 else [])]:
        for run in runs:
            yield (name, run.name, *_cells(figures(run, classes if name == ALL else [name])))


def figures(run: Run, classes: Sequence[str]) -> dict[str, object]:
    """Of the requests of these classes. miss_ratio: late or expired, of what was not refused."""
    account, seconds = run.account, run.duration_ns / S
    count = {o: sum(account.outcomes[name, o] for name in classes) for o in Outcome}
    arrived = sum(account.submitted[name] for name in classes)
    missed = count[Outcome.LATE] + count[Outcome.EXPIRED]
    admitted = missed + count[Outcome.SERVED] + count[Outcome.FAILED]
    reasons: dict[str, int] = {}
    for (name, reason), many in sorted(account.reasons.items()):
        if name in classes:
            reasons[reason] = reasons.get(reason, 0) + many
    return {
        "arrived": arrived,
        "goodput_per_s": count[Outcome.SERVED] / seconds,
        "utility_per_s": sum(account.utility[name] for name in classes) / seconds,
        "miss_ratio": missed / admitted if admitted else 0.0,
        "refused_ratio": count[Outcome.REJECTED] / arrived if arrived else 0.0,
        "reasons": reasons,
    }


def _cells(found: dict[str, object]) -> tuple[str, ...]:
    reasons = found["reasons"]
    assert isinstance(reasons, dict)
    return (
        f"{found['arrived']}",
        f"{found['goodput_per_s']:.1f}",
        f"{found['utility_per_s']:.1f}",
        f"{found['miss_ratio']:.2%}",
        f"{found['refused_ratio']:.2%}",
        ", ".join(f"{reason} {many}" for reason, many in reasons.items()),
    )


def as_dict(runs: Sequence[Run], agreed: Agreement) -> dict[str, object]:
    """Plain values, ready for JSON."""
    return {
        "agreement": {
            "requests": agreed.requests,
            "same_end": agreed.same,
            "on_time_recorded": agreed.on_time[0],
            "on_time_replayed": agreed.on_time[1],
        },
        "runs": [
            {
                "policy": run.name,
                "rule": run.rule,
                "busy": run.busy,
                "classes": {name: figures(run, [name]) for name in sorted(run.account.submitted)},
                "all": figures(run, list(run.account.submitted)),
            }
            for run in runs
        ],
    }

"""`tritonsched tuning export`: what feedback has learnt goes back into the policy file. Rule:
comments, order and form of the file stay; only values of knobs that feedback may turn are written,
and the file is replaced only by one that loads.

Exit 0: done, or nothing to do; 1: no sidecar answers; 2: the file has faults or cannot be written.
"""

import io
import json
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from ruamel.yaml import YAML

from tritonsched.admin_request import DEFAULT_ADMIN, admin_request
from tritonsched.config.load import parse_policy
from tritonsched.config.reader import read_text
from tritonsched.errors import ConfigError

WAIT_S = 5.0
MS_NS = 1_000_000
WIDTH = 4096  # no line of the file is broken anew
KEYS: Mapping[str, tuple[tuple[str, str], int]] = {
    "safety": (("scheduler", "safety"), 1),
    "window": (("scheduler", "window_ms"), MS_NS),
    "rows": (("scheduler", "rows_max"), 1),
    "queue": (("limits", "queue_requests_max"), 1),
    "guard": (("scheduler", "guard_ms"), MS_NS),
    "reply": (("scheduler", "reply_ms"), MS_NS),
}
"""Where a knob's value stands in a policy file, and how many of its units are one there."""
INTEGERS = ("rows", "queue")
INDENTS = ({"mapping": 2, "sequence": 2, "offset": 0}, {"mapping": 2, "sequence": 4, "offset": 2})

app = typer.Typer(name="tuning", help="What feedback has learnt.", no_args_is_help=True)


@app.callback()
def tuning() -> None:
    """What feedback has learnt."""


@app.command()
def export(
    policy: Annotated[Path, typer.Argument(help="The policy file to write the values into.")],
    *,
    admin: Annotated[
        str, typer.Option(help="HOST:PORT of the sidecar's metrics and admin.")
    ] = DEFAULT_ADMIN,
    admin_token: Annotated[
        str | None, typer.Option(envvar="TRITONSCHED_ADMIN_TOKEN", help="As of `serve`.")
    ] = None,
) -> None:
    """Write what a running sidecar has learnt into its policy file; comments are kept."""
    state = _asked(admin, admin_token)
    try:
        text = read_text(policy)
        parse_policy(text, str(policy))
        new, lines = exported(text, state["knobs"])
        parse_policy(new, str(policy))
        if lines:
            _replace(policy, new)
    except (ConfigError, OSError) as error:
        _refuse(str(error), 2)
    for line in lines or ["nothing to write: the file has these values already"]:
        sys.stdout.write(f"{policy}: {line}\n")


def exported(text: str, knobs: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The policy file's text with the active knobs' values, and what changed, a line each.

    knobs: as `/admin/tuning` shows them, values in the core's units.
    """
    yaml = _form_of(text)
    data = yaml.load(text)
    is_empty = data is None
    data = {} if is_empty else data
    known = parse_policy(text).model_dump()
    lines = []
    for knob, ((section, key), unit) in KEYS.items():
        if not knobs.get(knob, {}).get("active"):
            continue
        value = _rounded(knob, knobs[knob]["value"] / unit)
        old = known[section][key]
        if value != old:
            if not data.get(section):
                data[section] = {}
            data[section][key] = value
            lines.append(f"{section}.{key} {old}→{value}")
    if not lines:
        return text, []
    made = _dumped(yaml, data)
    if is_empty and text.strip():  # comments alone: they stay above
        made = text.rstrip("\n") + "\n" + made
    return made, lines


def _rounded(knob: str, value: float) -> float | int:
    return round(value) if knob in INTEGERS else round(float(value), 3)


def _form_of(text: str) -> YAML:
    """A reader and writer that writes this text as it stands, if there is one."""
    forms = [_form(**indent) for indent in INDENTS]
    fitting = (yaml for yaml in forms if _dumped(yaml, yaml.load(text)) == text)
    return next(fitting, forms[-1])


def _form(**indent: int) -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = WIDTH
    yaml.indent(**indent)
    return yaml


def _dumped(yaml: YAML, data: Any) -> str:  # YAML may hold anything
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def _replace(path: Path, text: str) -> None:
    """In one step: who reads the file sees the old one or the new one. Raises OSError."""
    target = path.resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(target.stat().st_mode & 0o7777)
        Path(name).replace(target)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _asked(admin: str, token: str | None) -> dict[str, Any]:
    try:
        request = admin_request(admin, "/admin/tuning", token)
    except ValueError as error:
        _refuse(f"--admin: {error}", 2)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as reply:  # noqa: S310  # http by construction
            state: dict[str, Any] = json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(500).decode(errors="replace")
        _refuse(f"{request.full_url}: {error.code} {said}", 1)
    except (OSError, ValueError) as error:
        _refuse(f"no sidecar's answer from {admin}: {error}", 1)
    return state


def _refuse(text: str, code: int) -> NoReturn:
    sys.stderr.write(f"tritonsched: {text}\n")
    raise typer.Exit(code)

"""Dockerfiles read, and their build stages run without docker, in a directory of the test's own.

Rule: a build stage runs exactly as it is written, but for two things: absolute paths lie below the
given root, and the base image's Python is stood in for by an environment of this repository that
was made from the same lock. An instruction that this does not know is an error.
"""

import fnmatch
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
RUN_TIMEOUT_S: Final = 100.0
# They make an image small and what it holds fast, and would only make the test slow; the compiled
# build is `make test-compiled`'s.
ENV_LEFT_OUT: Final = {
    "UV_NO_CACHE", "UV_LINK_MODE", "UV_COMPILE_BYTECODE", "HATCH_BUILD_HOOK_ENABLE_MYPYC",
}  # fmt: skip
_ABSOLUTE: Final = re.compile(r"(?<![\w./])/(?=opt/)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """stage: its name, or its number from 0 as text. word: upper case. text: the rest, joined."""

    stage: str
    word: str
    text: str


def instructions(path: Path) -> list[Instruction]:
    """The file in order, comments dropped, continued lines joined, ARGs before FROM filled in."""
    found: list[Instruction] = []
    arguments: dict[str, str] = {}
    stage, stages = "", 0
    for line in _logical_lines(path.read_text()):
        word, _, text = line.partition(" ")
        if word == "ARG" and not stages:
            name, _, default = text.partition("=")
            arguments[name] = default
        if word == "FROM":
            text = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m.group(1)], text)
            stage, stages = text.partition(" AS ")[2] or str(stages), stages + 1
        found.append(Instruction(stage, word.upper(), text.strip()))
    return found


def _logical_lines(text: str) -> Iterator[str]:
    kept = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    yield from re.sub(r"\\\n\s*", "", "\n".join(kept)).splitlines()


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps this path (relative to the repository) out of the build."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, keeps = line.removeprefix("!").removeprefix("**/"), line.startswith("!")
        parts = Path(name).parts
        places = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        if "**/" in line:
            places = list(parts)
        if any(fnmatch.fnmatch(place, pattern) for place in places):
            verdict = not keeps
    return verdict


@dataclass
class Build:
    """One build stage under way. root: stands for `/`. python: stands for the base image's."""

    root: Path
    python: Path
    env: dict[str, str] = field(default_factory=dict)
    place: Path = field(init=False)

    def __post_init__(self) -> None:
        self.place = self.root

    def run(self, steps: list[Instruction]) -> None:
        """All instructions in order. Raises AssertionError with the output of what failed."""
        for step in steps:
            match step.word:
                case "FROM" | "ARG":
                    pass
                case "WORKDIR":
                    self.place = self._inside(step.text)
                    self.place.mkdir(parents=True, exist_ok=True)
                case "ENV":
                    self._set(dict(pair.split("=", 1) for pair in step.text.split()))
                case "COPY":
                    self._copy(*step.text.split())
                case "RUN":
                    self._shell(_ABSOLUTE.sub(f"{self.root}/", step.text))
                case word:
                    raise AssertionError(f"{word} in a build stage")

    def _inside(self, path: str) -> Path:
        return self.root / path.lstrip("/") if path.startswith("/") else self.place / path

    def _set(self, pairs: Mapping[str, str]) -> None:
        self.env |= {name: value for name, value in pairs.items() if name not in ENV_LEFT_OUT}

    def _copy(self, *words: str) -> None:
        *sources, target = words
        for name in sources:
            source = ROOT / name
            assert source.exists(), f"COPY {name}: it is not there"
            assert not ignored(name), f"COPY {name}: .dockerignore keeps it out"
            place = self._inside(target)
            if source.is_dir():
                shutil.copytree(source, place, ignore=_ignored_in, dirs_exist_ok=True)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)

    def _shell(self, command: str) -> None:
        env = (
            os.environ
            | {
                "PATH": f"{self.python}/bin:{ROOT}/.tools/bin:{os.defpath}",
                "PIP_NO_INDEX": "1",  # what the stand-in lacks is an error, never installed into it
                "PIP_PYTHON": str(self.python / "bin" / "python"),
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            }
            | self.env
        )
        done = self._called(command, env | {"UV_OFFLINE": "1"})
        if done.returncode and " uv " in command:  # what set-up left in uv's cache was cleaned away
            done = self._called(command, env)
        assert done.returncode == 0, f"RUN {command}\n{done.stdout}{done.stderr}"

    def _called(self, command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", command],
            cwd=self.place,
            env=env,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )


def _ignored_in(directory: str, names: list[str]) -> set[str]:
    place = Path(directory).relative_to(ROOT)
    return {name for name in names if ignored(str(place / name))}

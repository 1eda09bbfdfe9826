"""The Dockerfiles: their build stages run here in a clean directory, what the last stages hold is
read. What needs docker (pulling the base images) is not tested.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT, Build, Instruction, ignored, instructions
from tests.integration.conftest import TRITON_ENVIRONMENT
from tritonsched.backend.prepare import MLP_WEIGHTS

SIDECAR = ROOT / "deploy" / "Dockerfile"
TRITON = ROOT / "deploy" / "Dockerfile.triton"
TOOLS = ROOT / ".tools"
MODELS = Path("model_repository")
REQUIREMENTS = ROOT / "deploy" / "triton" / "requirements.txt"


def stage(path: Path, name: str) -> list[Instruction]:
    return [step for step in instructions(path) if step.stage == name]


def texts(steps: list[Instruction], word: str) -> list[str]:
    return [step.text for step in steps if step.word == word]


@pytest.fixture(scope="module")
def sidecar_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`/` of the sidecar's build stage once it is through."""
    root = tmp_path_factory.mktemp("sidecar")
    Build(root, TOOLS).run(stage(SIDECAR, "build"))
    return root


@pytest.fixture(scope="module")
def triton_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`/` of the Triton image's build stage once it is through."""
    root = tmp_path_factory.mktemp("triton")
    Build(root, TRITON_ENVIRONMENT).run(stage(TRITON, "build"))
    return root


def test_the_sidecars_build_stage_installs_the_product_as_locked(sidecar_root: Path) -> None:
    """In an environment of its own, not editable, without the tools of development, and it runs."""
    home = sidecar_root / "opt" / "tritonsched"
    done = subprocess.run(
        [home / "bin" / "tritonsched", "serve", "--help"],
        env={"PATH": os.defpath, "COLUMNS": "100"},
        cwd=sidecar_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--triton-grpc" in done.stdout
    (site,) = home.glob("lib/python3*/site-packages")
    assert (site / "tritonsched" / "data").is_dir()
    assert not (site / "pytest").exists()
    assert not list(site.glob("*.pth"))


def test_what_the_sidecars_image_starts_is_in_the_environment_it_copies(sidecar_root: Path) -> None:
    last = stage(SIDECAR, "1")
    (copied,) = texts(last, "COPY")
    assert copied == "--from=build /opt/tritonsched /opt/tritonsched"
    (entrypoint,) = texts(last, "ENTRYPOINT")
    program, *arguments = json.loads(entrypoint)
    assert os.access(sidecar_root / "opt" / "tritonsched" / "bin" / program, os.X_OK)
    assert arguments == ["serve"]
    assert texts(last, "ENV")[0].startswith("PATH=/opt/tritonsched/bin:$PATH")


def test_both_stages_of_the_sidecar_stand_on_the_same_python() -> None:
    """The environment's interpreter is a link into the base image."""
    bases = [step.text.partition(" ")[0] for step in instructions(SIDECAR) if step.word == "FROM"]
    assert bases == ["python:3.11-bookworm", "python:3.11-slim-bookworm"]


def test_the_triton_images_build_stage_makes_the_emulated_gpu_and_the_weights(
    triton_root: Path,
) -> None:
    library = triton_root / "src" / "build" / "libtriton_emulated_gpu.so"
    assert library.read_bytes()[:4] == b"\x7fELF"
    repository = triton_root / "src" / "model_repository"
    assert (repository / MLP_WEIGHTS).stat().st_size > 3 * 2048 * 2048 * 4
    models = {path.parent.name for path in (ROOT / "model_repository").glob("*/config.pbtxt")}
    assert {path.parent.name for path in repository.glob("*/config.pbtxt")} == models


def test_the_triton_image_copies_what_its_build_stage_made(triton_root: Path) -> None:
    copies = [text for text in texts(stage(TRITON, "1"), "COPY") if text.startswith("--from=build")]
    made = [text.split()[1].lstrip("/") for text in copies]
    assert len(made) == 2
    assert all((triton_root / path).exists() for path in made)


def test_the_triton_images_packages_are_those_of_the_embedded_tritons_lock() -> None:
    """`deploy/triton/requirements.txt` is made from `deploy/triton/uv.lock`, with hashes."""
    command = re.findall(r"`uv (.*)`", REQUIREMENTS.read_text())
    done = subprocess.run(
        [TOOLS / "bin" / "uv", *command[0].split(), "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = REQUIREMENTS.read_text().partition("\n")[2].partition("\n")[2]
    assert listed == done.stdout


@pytest.mark.parametrize("path", [SIDECAR, TRITON], ids=lambda path: path.name)
def test_a_last_stage_builds_nothing_and_runs_as_tritons_own_user(path: Path) -> None:
    last = stage(path, "1")
    assert texts(last, "USER") == ["1000:1000"]
    commands = " ".join(texts(last, "RUN"))
    for tool in ("gcc", "cc ", "make", "apt", "uv "):
        assert tool not in commands
    assert all(text.startswith("--from=build") or "requirements.txt" in text
               for text in texts(last, "COPY"))  # fmt: skip


def test_triton_is_new_enough_for_its_known_holes() -> None:
    (base,) = [s.text for s in stage(TRITON, "1") if s.word == "FROM"]
    found = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d+)\.(\d+)-py3", base)
    assert found
    assert (int(found.group(1)), int(found.group(2))) >= (26, 5)


@pytest.mark.parametrize(
    "name",
    [
        ".git",
        ".venv",
        ".run",
        "tests",
        "build",
        "tritonsched/__pycache__",
        str(MODELS / MLP_WEIGHTS),
    ],
)
def test_what_a_build_does_not_need_stays_out_of_it(name: str) -> None:
    assert ignored(name)
    assert not ignored("tritonsched/backend/emulated_gpu/gpu.c")


def test_the_exposed_ports_are_the_default_ones() -> None:
    assert texts(stage(SIDECAR, "1"), "EXPOSE") == ["8000 8001 8002"]

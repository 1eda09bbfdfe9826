"""What machine it is and which files a model is made of: found out, or told as unknown."""

import os
from pathlib import Path

import pytest

from tritonsched.backend import weights
from tritonsched.backend.hardware import UNKNOWN_CPU, cpu_name, gpus, hardware
from tritonsched.backend.weights import files_sha256, hashes
from tritonsched.config.profile_file import Gpu


def test_this_machine_has_a_processor_and_it_stays_the_same() -> None:
    found = hardware()
    assert found.cpu
    assert found.cores == len(os.sched_getaffinity(0))
    assert hardware() == found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n\nmodel name\t: B\n", "A CPU @ 2 GHz"),
        ("processor : 0\nCPU part : 0xd0c\n", "0xd0c"),
        ("nothing of use", UNKNOWN_CPU),
    ],
)
def test_the_processor_is_the_first_that_is_named(text: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert cpu_name(path) == name


def test_a_machine_that_tells_nothing_is_unknown(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "none") == UNKNOWN_CPU
    assert gpus(str(tmp_path / "none")) == []


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path) -> None:
    tool = script(tmp_path / "smi", "echo 'NVIDIA A, 1, 550.1'; echo 'NVIDIA B, 550.1'; echo")
    assert gpus(tool) == [
        Gpu(name="NVIDIA A, 1", driver="550.1"),
        Gpu(name="NVIDIA B", driver="550.1"),
    ]


def test_an_nvidia_smi_that_fails_means_no_gpu(tmp_path: Path) -> None:
    assert gpus(script(tmp_path / "smi", "echo 'No devices, found'; exit 9")) == []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "repository" / "m"
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text('name: "m"')
    (directory / "1" / "model.bin").write_bytes(b"weights")
    return directory


def test_contents_and_names_count_and_nothing_else(model: Path) -> None:
    first = files_sha256(model)
    os.utime(model / "config.pbtxt", (1, 1))
    (model / "1" / "__pycache__").mkdir()
    (model / "1" / "__pycache__" / "model.pyc").write_bytes(b"x")
    (model / ".hidden").write_text("x")
    assert files_sha256(model) == first
    (model / "1" / "model.bin").write_bytes(b"weighty")
    second = files_sha256(model)
    (model / "1" / "model.bin").rename(model / "1" / "other.bin")
    assert len({first, second, files_sha256(model)}) == 3


@pytest.mark.parametrize("place", [0, -1])
def test_of_a_large_file_both_ends_count(
    place: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "WHOLE_BYTES_MAX", 64)
    monkeypatch.setattr(weights, "END_BYTES", 16)
    data = bytearray(range(100))
    (model / "1" / "model.bin").write_bytes(data)
    before = files_sha256(model)
    data[place] ^= 1
    (model / "1" / "model.bin").write_bytes(data)
    assert files_sha256(model) != before


def test_what_cannot_be_read_has_no_hash(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files_sha256(model / "none") is None
    (model.parent / "empty").mkdir()
    assert files_sha256(model.parent / "empty") is None
    assert hashes(None, ["m"]) == {}
    assert hashes(model.parent, ["m", "none", "", "..", "../repository/m"]).keys() == {"m"}
    monkeypatch.setattr(weights, "FILES_MAX", 1)
    assert files_sha256(model) is None


def test_a_file_that_goes_away_while_it_is_read_leaves_no_hash(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Path) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(weights, "_file_digest", gone)
    assert files_sha256(model) is None

"""Clients' regions: what is read, what is refused, how long they live."""

import os
from pathlib import Path

import pytest

from tritonsched.errors import RegionFault
from tritonsched.proxy import client_regions
from tritonsched.proxy.client_regions import ClientRegions, hold_all
from tritonsched.tensors import ShmRef


@pytest.fixture
def regions(tmp_path: Path) -> ClientRegions:
    (tmp_path / "r").write_bytes(bytes(range(32)))
    return ClientRegions(is_local=lambda: True, directory=tmp_path)


def test_a_place_counts_from_where_the_region_was_registered(regions: ClientRegions) -> None:
    regions.registered("a", "/r", 8, 16)
    ref = ShmRef("a", 2, 4)
    held = regions.named({ref.region})
    assert held["a"].read(ref) == bytes([10, 11, 12, 13])
    held["a"].write(ref, b"xy")
    assert held["a"].read(ref) == b"xy" + bytes([12, 13])


@pytest.mark.parametrize("place", [(0, 17), (16, 1), (1 << 62, 1)])
def test_a_place_outside_is_not_held(regions: ClientRegions, place: tuple[int, int]) -> None:
    regions.registered("a", "/r", 8, 16)
    ref = ShmRef("a", *place)
    assert not hold_all(regions.named({ref.region}), [ref])
    assert hold_all(regions.named({ref.region}), [ShmRef("a", 0, 16)])


@pytest.mark.parametrize("key", ["", "/", "/..", "/.", "/a/b", "/none", "/r\0x/y", "//r", "r"])
def test_a_key_is_read_as_shm_open_reads_it(regions: ClientRegions, key: str) -> None:
    regions.registered("a", key, 0, 16)
    assert len(regions) == (key.partition("\0")[0].lstrip("/") == "r")


def test_what_is_no_file_of_that_size_is_not_remembered(
    regions: ClientRegions, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "r")
    regions.registered("large", "/r", 0, 33)
    regions.registered("pipe", "/pipe", 0, 0)
    regions.registered("link", "/link", 0, 1)
    assert len(regions) == 0


def test_on_another_host_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"1234")
    far = ClientRegions(is_local=lambda: False, directory=tmp_path)
    far.registered("a", "/r", 0, 4)
    assert len(far) == 0


def test_their_number_is_bounded(regions: ClientRegions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_regions, "REGIONS_MAX", 1)
    regions.registered("a", "/r", 0, 4)
    regions.registered("b", "/r", 0, 4)
    assert regions.named({"a", "b"}).keys() == {"a"}


def test_who_uses_a_region_keeps_it_though_it_is_unregistered_and_its_key_is_anothers(
    regions: ClientRegions, tmp_path: Path
) -> None:
    ref = ShmRef("a", 0, 2)
    regions.registered("a", "/r", 0, 4)
    held = regions.named({ref.region})
    (tmp_path / "r").unlink()
    (tmp_path / "r").write_bytes(b"new!")
    assert regions.named({ref.region})["a"].read(ref) == b"\x00\x01"
    regions.unregistered("a")
    assert regions.named({ref.region}) == {}
    assert held["a"].read(ref) == b"\x00\x01"


def test_a_region_that_shrank_is_an_error_and_no_signal(
    regions: ClientRegions, tmp_path: Path
) -> None:
    ref = ShmRef("a", 0, 32)
    regions.registered("a", "/r", 0, 32)
    held = regions.named({ref.region})
    assert held["a"].is_whole
    os.truncate(tmp_path / "r", 16)
    with pytest.raises(RegionFault, match="made smaller"):
        held["a"].read(ref)
    with pytest.raises(RegionFault, match="has no 1 bytes"):
        held["a"].write(ref, b"1")
    assert not held["a"].is_whole


def test_more_than_its_place_is_not_written(regions: ClientRegions) -> None:
    regions.registered("a", "/r", 0, 32)
    region = regions.named({"a"})["a"]
    with pytest.raises(RegionFault):
        region.write(ShmRef("a", 0, 4), b"12345")
    assert region.read(ShmRef("a", 0, 5)) == bytes(range(5))


def test_another_triton_knows_none(regions: ClientRegions) -> None:
    regions.registered("a", "/r", 0, 4)
    regions.forget()
    assert len(regions) == 0

"""A changed file is noticed once, however it was changed, and only when it is whole."""

import os
from pathlib import Path

import pytest

from tritonsched.proxy.watch import INTERVAL_S, FileWatch, signature


class Watched:
    """A watch on a file; changes are counted."""

    def __init__(self, path: Path) -> None:
        self.changes = 0
        self.watch = FileWatch(lambda: signature(path), self._changed)

    async def _changed(self) -> None:
        self.changes += 1

    async def settle(self) -> int:
        """Look three times; the changes so far."""
        for _ in range(3):
            await self.watch.poll()
        return self.changes


def replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


async def test_each_atomic_rename_is_one_change(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a")
    watched = Watched(path)
    assert await watched.settle() == 0
    for count in (1, 2, 3):
        replace(path, f"text {count}")
        assert await watched.settle() == count


async def test_a_file_that_still_changes_is_left_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a")
    watched = Watched(path)
    for text in ("ab", "abc", "abcd"):
        path.write_text(text)
        await watched.watch.poll()
    assert watched.changes == 0
    assert await watched.settle() == 1


async def test_the_swap_of_a_config_map_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.yaml").write_text("same")
    data = tmp_path / "..data"
    data.symlink_to("one")
    (tmp_path / "p.yaml").symlink_to("..data/p.yaml")
    watched = Watched(tmp_path / "p.yaml")
    (tmp_path / "..data_tmp").symlink_to("two")
    os.rename(tmp_path / "..data_tmp", data)
    assert await watched.settle() == 1


async def test_a_file_that_goes_away_is_no_change_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a")
    watched = Watched(path)
    path.unlink()
    assert await watched.settle() == 0
    path.write_text("other")
    assert await watched.settle() == 1


async def test_it_looks_once_an_interval(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "none")
    pauses: list[float] = []

    class Enough(Exception):
        """Ends the loop."""

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise Enough

    with pytest.raises(Enough):
        await watched.watch.run(pause)
    assert pauses == [INTERVAL_S] * 3

"""The pool: pieces never overlap, everything comes back, dead sidecars' regions go."""

import errno
import fcntl
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritonsched.backend.leases import ALIGN, Lease
from tritonsched.backend.shared_memory import (
    POOL_BYTES_MAX,
    POOL_BYTES_MIN,
    SharedMemoryPool,
    default_bytes,
    is_region_name,
    remove_stale,
)
from tritonsched.errors import StartupError

PAGES = 4096
POOL_BYTES = 16 * PAGES


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[SharedMemoryPool]:
    made = SharedMemoryPool(POOL_BYTES, directory=tmp_path)
    yield made
    made.close()


def lease(pool: SharedMemoryPool, byte_size: int) -> Lease:
    taken = pool.lease(byte_size)
    assert taken is not None
    return taken


@settings(max_examples=200)
@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(min_value=1, max_value=POOL_BYTES // 3)),
        max_size=60,
    )
)
def test_leases_never_overlap_and_all_space_comes_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]]
) -> None:
    """Whatever the order of taking and giving back: aligned, apart, bounded, whole at the end."""
    pool = SharedMemoryPool(POOL_BYTES, directory=tmp_path_factory.mktemp("shm"))
    out: list[Lease] = []
    try:
        for takes, number in steps:
            taken = pool.lease(number) if takes else None
            if taken is not None:
                out.append(taken)
            elif out:
                out.pop(number % len(out)).release()
            spans = sorted((piece.offset, piece.offset + piece.byte_size) for piece in out)
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
            assert all(start % ALIGN == 0 and end <= POOL_BYTES for start, end in spans)
            assert pool.leases == len(out)
            assert sum(piece.byte_size for piece in out) <= pool.in_use_bytes <= POOL_BYTES
        for piece in out:
            piece.release()
        assert (pool.leases, pool.in_use_bytes) == (0, 0)
        lease(pool, POOL_BYTES).release()
    finally:
        pool.close()


def test_a_full_pool_says_so_and_has_room_again_after_a_release(pool: SharedMemoryPool) -> None:
    """None, not an error: the batch then goes inline."""
    first = lease(pool, POOL_BYTES)
    assert pool.lease(1) is None
    first.release()
    assert pool.lease(1) is not None


def test_a_view_is_the_regions_memory(pool: SharedMemoryPool) -> None:
    """What is written into a lease is what another process reads at its offset."""
    lease(pool, 100)
    second = lease(pool, 5)
    second.view[:] = b"hello"
    assert pool.path.read_bytes()[second.offset : second.offset + 5] == b"hello"
    assert len(second.view) == 5


def test_releasing_twice_is_our_own_mistake(pool: SharedMemoryPool) -> None:
    """It would hand one piece to two batches."""
    piece = lease(pool, 1)
    piece.release()
    with pytest.raises(AssertionError, match="twice"):
        piece.release()


def test_a_released_view_cannot_be_read(pool: SharedMemoryPool) -> None:
    """A reader that comes too late is stopped, instead of seeing another batch."""
    piece = lease(pool, 1)
    view = piece.view
    piece.release()
    with pytest.raises(ValueError, match="released"):
        view[0]


def test_closing_removes_the_file_and_leaves_memory_that_is_out(tmp_path: Path) -> None:
    """A batch that is still out keeps what it reads; closing again does nothing."""
    pool = SharedMemoryPool(POOL_BYTES, directory=tmp_path)
    piece = lease(pool, 4)
    piece.view[:] = b"kept"
    pool.close()
    assert list(tmp_path.iterdir()) == []
    assert bytes(piece.view) == b"kept"
    pool.close()


def test_the_region_is_private_to_its_user_and_called_after_its_process(
    pool: SharedMemoryPool,
) -> None:
    """No other user of the machine reads the tensors."""
    assert pool.path.stat().st_mode & 0o777 == 0o600
    assert pool.name.startswith(f"tritonsched-{os.getpid()}-")
    assert is_region_name(pool.name)
    assert pool.key == f"/{pool.name}"
    assert pool.path.stat().st_size == pool.byte_size == POOL_BYTES


def test_a_size_is_rounded_up_to_whole_pages(tmp_path: Path) -> None:
    """The rest of a page could not be used by anybody else."""
    pool = SharedMemoryPool(1, directory=tmp_path)
    assert pool.byte_size == PAGES
    pool.close()


def test_no_room_is_an_error_with_numbers_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system's own refusal, with what is there, what is needed and what to do."""

    def full(_file: int, _offset: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StartupError) as caught:
        SharedMemoryPool(POOL_BYTES, directory=tmp_path)
    text = str(caught.value)
    assert str(tmp_path) in text
    assert f"needs {POOL_BYTES} (No space left on device)" in text
    assert "--transport inline" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(1 << 30, POOL_BYTES_MAX), (16384, 16384 * 4096 // 4), (1, POOL_BYTES_MIN)],
    ids=["large", "docker's default", "tiny"],
)
def test_the_default_size_is_a_quarter_within_bounds(
    monkeypatch: pytest.MonkeyPatch, blocks: int, expected: int
) -> None:
    """Docker's 64 MiB give 16 MiB."""
    stat = os.statvfs_result((4096, 4096, blocks, blocks, blocks, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: stat)
    assert default_bytes() == expected


def test_only_dead_sidecars_regions_are_removed(tmp_path: Path, pool: SharedMemoryPool) -> None:
    """A living pool's stays, and so does whatever is called otherwise, locked or not."""
    dead = tmp_path / "tritonsched-1-0123abcd"
    foreign = [
        "tritonsched-1-0123abc",
        "tritonsched-x-0123abcd",
        "tritonsched-0123456789012345-70d3b438-4154-4a4b-a7d9-99264654ad62",
        "triton_python_backend_shm_region_1",
    ]
    for name in (dead.name, *foreign):
        (tmp_path / name).write_bytes(b"x")
    assert remove_stale(tmp_path) == [dead.name]
    assert {path.name for path in tmp_path.iterdir()} == {pool.name, *foreign}


def test_a_new_pool_sweeps_first(tmp_path: Path) -> None:
    """So a crash costs no memory for longer than until the next start, whatever its pid was."""
    left = tmp_path / f"tritonsched-{os.getpid()}-0123abcd"
    left.write_bytes(b"x")
    pool = SharedMemoryPool(PAGES, directory=tmp_path)
    assert not left.exists()
    assert pool.path.exists()
    pool.close()


def test_a_link_under_a_regions_name_is_left_alone(tmp_path: Path) -> None:
    """/dev/shm is everybody's: a link must not lead us to another file."""
    target = tmp_path / "target"
    target.write_bytes(b"x")
    (tmp_path / "tritonsched-1-0123abcd").symlink_to(target)
    assert remove_stale(tmp_path) == []
    assert target.read_bytes() == b"x"


def test_a_region_swept_while_it_is_being_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making and locking a file another start may take it for a dead sidecar's."""
    real = fcntl.flock
    names: list[str] = []

    def swept_first(file: int, operation: int) -> None:
        if not names:
            (path,) = tmp_path.iterdir()
            path.unlink()
            names.append(path.name)
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    pool = SharedMemoryPool(PAGES, directory=tmp_path)
    assert pool.name not in names
    assert [path.name for path in tmp_path.iterdir()] == [pool.name]
    pool.close()


def test_a_region_locked_by_a_sweep_while_it_is_being_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other order: the sweep holds the lock when we ask for it."""
    real = fcntl.flock
    tries: list[int] = []

    def busy_once(file: int, operation: int) -> None:
        tries.append(file)
        if len(tries) == 1:
            raise BlockingIOError
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", busy_once)
    pool = SharedMemoryPool(PAGES, directory=tmp_path)
    assert len(tries) == 2
    assert pool.path.exists()
    pool.close()

"""Bodies in pieces."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from tritonsched.frontend.pieces import PIECE_BYTES_MIN, Pieces, add, joined


@given(st.lists(st.one_of(st.binary(max_size=3), st.just(bytes(PIECE_BYTES_MIN)))))
def test_pieces_join_to_what_came(given: list[bytes]) -> None:
    pieces: Pieces = []
    for data in given:
        add(pieces, data)
    assert joined(pieces) == b"".join(given)
    assert len(pieces) <= 2 + 2 * sum(len(data) >= PIECE_BYTES_MIN for data in given)


def test_a_single_piece_is_not_copied() -> None:
    data = bytes(10)
    pieces: Pieces = []
    add(pieces, data)
    assert joined(pieces) is data


def test_bytes_that_come_one_by_one_take_little_more_than_their_bytes() -> None:
    pieces: Pieces = []
    for _ in range(100_000):
        add(pieces, b"x")
    assert sum(map(sys.getsizeof, pieces)) < 200_000

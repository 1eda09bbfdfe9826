"""A body that comes in pieces. Rule: however small, they cost little more than their bytes.

A piece of one byte is an object of 34 and a place in a list: a body cut into such pieces would take
forty times the memory that its limit says. So small pieces are put together as they come.
"""

PIECE_BYTES_MIN = 1024

Pieces = list[bytes | bytearray]


def add(pieces: Pieces, data: bytes) -> None:
    """One more; the first one stays as it is, because it says how much there will be."""
    if len(data) >= PIECE_BYTES_MIN or not pieces:
        pieces.append(data)
        return
    last = pieces[-1]
    if not isinstance(last, bytearray):
        last = bytearray()
        pieces.append(last)
    last += data


def joined(pieces: Pieces) -> bytes:
    """All of them; a single one is not copied."""
    first = pieces[0] if len(pieces) == 1 else None
    return first if isinstance(first, bytes) else b"".join(pieces)

"""Memory leased in pieces. Rule: a piece belongs to one batch at a time.

Whoever owns the memory, POSIX shared memory or a GPU's, is a `LeasedMemory`: first fit, and
neighbours join when they are given back. Cost: O(free pieces) a lease and a release; free pieces <=
leases + 1.
"""

from bisect import bisect

ALIGN = 64  # a cache line: rows of two batches never share one


class Lease:
    """A piece of the memory. view: its bytes on the host; offset: where it begins in the region."""

    __slots__ = ("_pool", "byte_size", "offset", "view")

    def __init__(self, pool: "LeasedMemory", offset: int, view: memoryview) -> None:
        self._pool: LeasedMemory | None = pool
        self.offset = offset
        self.byte_size = view.nbytes
        self.view = view

    def belongs_to(self, pool: "LeasedMemory") -> bool:
        """Whether it is an unreleased piece of that pool."""
        return self._pool is pool

    def release(self) -> None:
        """Give the piece back. Only once Triton is known to be done with it, and only once."""
        assert self._pool is not None, "lease released twice"
        pool, self._pool = self._pool, None
        self.view.release()
        pool.give_back(self.offset, self.byte_size)


class LeasedMemory:
    """The pieces of `memory`, and which of them are free.

    in_use_bytes, leases: what is out now.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.byte_size = memory.nbytes
        self.in_use_bytes = 0
        self.leases = 0
        self._free = [(0, memory.nbytes)]

    def lease(self, byte_size: int) -> Lease | None:
        """A piece of `byte_size` >= 1 bytes at a multiple of 64; None if there is no room now."""
        assert byte_size > 0, "a lease of nothing"
        size = aligned(byte_size, ALIGN)
        for index, (offset, length) in enumerate(self._free):
            if length >= size:
                rest = length - size
                self._free[index : index + 1] = [(offset + size, rest)] if rest else []
                self.in_use_bytes += size
                self.leases += 1
                return Lease(self, offset, self._memory[offset : offset + byte_size])
        return None

    def give_back(self, offset: int, byte_size: int) -> None:
        """A lease's piece is free again and joins its free neighbours; for leases."""
        size = aligned(byte_size, ALIGN)
        self.in_use_bytes -= size
        self.leases -= 1
        start, end = offset, offset + size
        free = self._free
        first = last = bisect(free, (offset, size))
        if first > 0:
            before, length = free[first - 1]
            if before + length == start:
                first, start = first - 1, before
        if last < len(free):
            after, length = free[last]
            if after == end:
                last, end = last + 1, after + length
        free[first:last] = [(start, end - start)]


def aligned(size: int, grain: int) -> int:
    """The next multiple of `grain`."""
    return -(-size // grain) * grain

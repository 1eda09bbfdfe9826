"""Where all connections of a thread read into. Rule: what was read is heard before the next read.

libnghttp2 copies what is kept. A fresh buffer for each read is a copy and page faults more.
"""

import threading

READ_BYTES_MAX = 256 * 1024  # at once


class _Buffer(threading.local):
    """view: the thread's own."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES_MAX))


BUFFER = _Buffer()

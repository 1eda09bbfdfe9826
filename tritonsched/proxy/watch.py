"""Notices that a file changed, whatever changed it. Rule: the path is asked, not the file.

Watching a file's inode misses the second atomic rename, and a Kubernetes ConfigMap swaps a symlink
in the path. So the path is looked at every `INTERVAL_S` (two system calls), and a change counts
once it has been seen twice the same: an editor that writes in two steps is not read in between.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

INTERVAL_S = 0.5
Signature = tuple[int, int, int, int]


def signature(path: Path) -> Signature | None:
    """What changes with the file, links followed; None if it is not there."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size


class FileWatch:
    """look: the signature now. changed: awaited once for each settled change.

    A file that goes away is no change: the policy in use stays until there is another one.
    """

    def __init__(
        self, look: Callable[[], Signature | None], changed: Callable[[], Awaitable[object]]
    ) -> None:
        self._look = look
        self._changed = changed
        self._used = look()
        self._before = self._used

    async def poll(self) -> None:
        """Look once."""
        now, before = self._look(), self._before
        self._before = now
        if now is not None and now == before and now != self._used:
            self._used = now
            await self._changed()

    async def run(self, pause: Callable[[float], Awaitable[None]]) -> None:
        """Look for ever; ends by being cancelled."""
        while True:
            await pause(INTERVAL_S)
            await self.poll()

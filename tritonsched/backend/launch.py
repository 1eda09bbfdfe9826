"""Starts a program that must not outlive its parent: `python -I -S launch.py PARENT_PID PROGRAM …`.

Rule: run as a script, standard library only, and nothing left of it after `exec`: the program keeps
the process id. A script instead of a `preexec_fn`, because code between fork and exec of a process
with threads (gRPC has several) can deadlock.
Source: prctl(2), PR_SET_PDEATHSIG: kept over exec, sent when the thread that forked ends.
"""

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> None:
    """Replace this process by the program; exits if the parent is gone already."""
    parent_pid, program, *rest = arguments
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent_pid):
        sys.exit(0)  # it died between fork and prctl, so the signal would never come
    os.execv(program, [program, *rest])  # noqa: S606  # no shell is the point


if __name__ == "__main__":
    main(sys.argv[1:])

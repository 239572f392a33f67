"""Ties a process's life to its parent's, so that a killed launcher leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent: int, with_signal: int = signal.SIGKILL) -> None:
    """Asks the kernel to signal this process when its parent ends. Elsewhere than on Linux it does nothing.

    Args:
        parent: the parent's pid, read before the fork; a parent that ended in between is noticed.
    """
    if _libc is None:
        return
    if _libc.prctl(_PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), with_signal)


def main() -> None:
    """``python -m lodestar.local.lifeline PARENT COMMAND …``: becomes the command, tied to the parent's life."""
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()

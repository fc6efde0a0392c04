"""An exclusive lock between processes (and threads), held on an open file and freed by the system when a process dies.

Owns the platform differences. Knows nothing of models. Lock files are never deleted: whoever still waits on a deleted
file would hold a lock that nobody else sees.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import errno
    import fcntl

_POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, *, wait: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock on the file at `path`, created when missing; yields whether it is held.

    With wait, another holder is waited for (Ctrl-C works) and the value is always True; on_wait is called once when
    waiting starts. Without, a busy lock yields False. Raises OSError when the file cannot be opened or locked; a
    symbolic link in its place is such a case.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(path, flags, 0o644)  # never inherited by a child, which would keep the lock alive
    try:
        held = _try_lock(fd)
        if not held and wait:
            if on_wait is not None:
                on_wait()
            while not (held := _try_lock(fd)):
                time.sleep(_POLL_SECONDS)
        try:
            yield held
        finally:
            if held:
                _unlock(fd)
    finally:
        os.close(fd)


if sys.platform == "win32":

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _unlock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)

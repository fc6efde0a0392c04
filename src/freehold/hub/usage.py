"""Which processes have a model of the store loaded: so that `rm` does not delete it under them.

Owns one empty file for each use, locked as long as the model is loaded:

    ROOT/locks/NAME.use-PID-N           N counts the uses within one process

The system frees the lock when a process dies, whatever kills it; the file that is left then says nothing. Nothing here
may fail a load: in a store that cannot be written to a model is used without a word, and cannot be removed either.
"""

from __future__ import annotations

import itertools
import os
import re
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path

from freehold.hub.lock import locked
from freehold.hub.store import Store, check_name

_serial = itertools.count(1)


class Use:
    """The mark that this process uses the model whose files are at `path`; none if they are not in the store.

    Taken back by `release`, and when the object is no more.
    """

    def __init__(self, path: Path, store: Store) -> None:
        stack = ExitStack()
        self._release = weakref.finalize(self, stack.close)
        try:
            name = path.relative_to(store.root / "models").parts[0]
        except (ValueError, IndexError):
            return
        folder = store.root / "locks"
        with suppress(OSError):  # the store cannot be written to
            folder.mkdir(parents=True, exist_ok=True)
            mark = folder / f"{name}.use-{os.getpid()}-{next(_serial)}"
            stack.callback(_unlink, mark)
            stack.enter_context(locked(mark, wait=False))

    def release(self) -> None:
        """Take the mark back; twice does nothing."""
        self._release()


def users(name: str, store: Store) -> list[int]:
    """The processes that use the model `name`, ascending. Marks that a killed process left are deleted."""
    pattern = re.compile(re.escape(check_name(name)) + r"\.use-(\d{1,10})-\d+", re.ASCII)
    found = set()
    with suppress(OSError):
        for mark in (store.root / "locks").iterdir():
            if (match := pattern.fullmatch(mark.name)) and _is_held(mark):
                found.add(int(match[1]))
    return sorted(found)


def _is_held(mark: Path) -> bool:
    try:
        with locked(mark, wait=False) as free:
            if not free:
                return True
    except PermissionError:  # another user's; whether it is held cannot be told
        return True
    except OSError:  # gone meanwhile
        return False
    _unlink(mark)
    return False


def _unlink(mark: Path) -> None:
    with suppress(OSError):
        mark.unlink()

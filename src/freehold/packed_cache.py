"""Packed weights kept from one load to the next: used if they are good, written in the background if they are not.

Owns when a packed file is read, dropped, written and waited for. Nothing here may fail a load: whatever is wrong with
the file, the disk or the folder ends in packing the weights as if there were no cache, with a remark for those who ask.
Knows neither models nor the format of the file, and of kernels only how to take a matrix out and put one back.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from freehold.errors import FreeholdError, KernelError, NotFoundError
from freehold.hub import Store
from freehold.hub.packed import PackedPlace, fingerprint, packed_place, sweep
from freehold.kernels import PACKED_LAYOUT, unwrap, wrap
from freehold.weights.packed_file import Identity, PackedFile, PackedMatrix, packed_bytes, write_packed

MIN_BYTES = 16 << 20
"""Packed weights below this are not kept: packing them takes some 40 ms, and a disk holds thousands of small models."""

PATIENCE = 1.0
"""Seconds for which `finish` waits without a word."""

REST = 0.1
"""Seconds without a forward pass after which a model counts as resting. A thread that writes beside the kernels' own
keeps them waiting for each other: a token took half as long again on two cores."""

Note = Callable[[str], None]


class PackedCache:
    """The packed weights of one model: those an earlier load left, and those to leave for the next.

    A load opens it, the loader asks `find` and tells `keep`, then `start` writes what was missing, in a thread of its
    own. remark: what came of it, for people.
    """

    def __init__(self, model: Path, store: Store, rounding: str, note: Note | None = None) -> None:
        """`rounding` names the rounding of weights; the file serves no other. `note` hears of a wait in `finish`."""
        self._note = note
        self._store = store
        self._place: PackedPlace | None = None
        self._file: PackedFile | None = None
        self._matrices: list[tuple[str, int, Any]] = []  # name, expert, matrix
        self._n_missing = 0
        self._writing = False
        self._stop, self._ended = threading.Event(), threading.Event()  # a join that Ctrl-C interrupts joins no more
        self._size = self._done = 0  # of the file being written, bytes
        self.remark = "weights packed"
        try:
            self._identity = Identity(fingerprint(model, store), rounding, PACKED_LAYOUT)
            self._place = packed_place(model, store)
            self._file = PackedFile(self._place.file, self._identity)
            self.remark = "weights packed before"
        except NotFoundError:
            pass  # the first load
        except (FreeholdError, OSError) as error:
            self.remark = f"weights packed: {error}"
            if self._place is not None:
                self._place.discard()

    @property
    def is_warm(self) -> bool:
        """Whether there is a good file."""
        return self._file is not None

    def find(self, name: str, n: int, n_rows: int, n_cols: int) -> tuple[Any, ...] | None:
        """The n matrices [n_rows, n_cols] of a tensor, all or none."""
        if self._file is None:
            return None
        found = [packed for expert in range(n) if (packed := self._file.find(name, expert)) is not None]
        if len(found) != n or {(p.format, p.n_rows, p.n_cols) for p in found} != {(found[0].format, n_rows, n_cols)}:
            return None
        try:
            matrices = [wrap(packed.data, packed.format, n_rows, n_cols) for packed in found]
        except KernelError:
            return None
        self._matrices += [(name, expert, matrix) for expert, matrix in enumerate(matrices)]
        return tuple(matrices)

    def keep(self, name: str, matrices: Sequence[Any]) -> None:
        """Matrices that `find` did not have; they may still be waiting to be packed."""
        self._n_missing += len(matrices)
        self._matrices += [(name, expert, matrix) for expert, matrix in enumerate(matrices)]

    def start(self, idle_seconds: Callable[[], float] = lambda: math.inf) -> None:
        """Once the model is loaded: write the file in the background, if there is something to keep.

        `idle_seconds`: for how long the model has computed nothing; writing goes on only while it rests.
        """
        self._idle_seconds = idle_seconds
        matrices, self._matrices, was_warm, self._file = self._matrices, [], self.is_warm, None
        if self._place is None or not self._n_missing:
            return
        if was_warm:
            self._place.discard()  # a good file, but not of all that this version packs
        packed = [_packed(name, expert, matrix) for name, expert, matrix in matrices]
        self._size = packed_bytes(packed)
        if self._size < MIN_BYTES:
            return
        # A daemon: whoever leaves without closing the model shall not wait. What is unfinished is removed at the exit.
        try:
            threading.Thread(target=self._run, args=(packed,), name="freehold-packed", daemon=True).start()
        except RuntimeError as error:  # of a limit on threads
            self.remark += f"; not kept: {error}"
            return
        self._writing = True
        atexit.register(self.abandon)

    def finish(self) -> None:
        """Wait for the file. Where a `note` announces the wait, Ctrl-C ends it; elsewhere it goes on to the caller."""
        if not self._writing:
            return
        announced = False
        try:
            if not self._ended.wait(PATIENCE) and self._note is not None:
                announced = True
                self._note(
                    f"keeping the packed weights for quicker starts ({self._size / 1e9:.1f} GB, "
                    f"{100 * self._done // self._size} % written); Ctrl-C skips this"
                )
            self._ended.wait()
        except KeyboardInterrupt:
            if not announced:
                raise
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Stop writing, within a fraction of a second, and leave nothing behind. Does nothing to a finished file."""
        if self._writing:
            self._writing = False
            self._stop.set()
            self._ended.wait()
            atexit.unregister(self.abandon)

    def _run(self, matrices: Sequence[PackedMatrix]) -> None:
        assert self._place is not None
        try:
            self.remark += self._write(self._place, matrices)
        except (FreeholdError, OSError) as error:
            self.remark += f"; not kept: {error}"
        finally:
            self._ended.set()

    def _write(self, place: PackedPlace, matrices: Sequence[PackedMatrix]) -> str:
        """The end of the remark."""
        with place.writing() as ours:
            if not ours:
                return "; another process is keeping them"
            unfinished = place.file.with_name(f"{place.file.name}.part")
            unfinished.unlink(missing_ok=True)  # of a killed process: no other writes here
            with suppress(FreeholdError):
                PackedFile(place.file, self._identity)
                return "; another process has kept them"
            place.discard()
            if os.path.lexists(place.file):
                return f"; not kept: {place.file} is in the way"
            sweep(self._store)
            if not place.has_room(self._size):
                return f"; not kept: {self._size / 1e9:.1f} GB would leave too little of the disk free"
            try:
                if not write_packed(unfinished, self._identity, matrices, self._go_on):
                    return "; not kept"
                os.replace(unfinished, place.file)
                return "; kept for the next time"
            finally:
                unfinished.unlink(missing_ok=True)

    def _go_on(self, done: int) -> bool:
        self._done = done
        while self._idle_seconds() < REST and not self._stop.wait(REST):
            pass
        return not self._stop.is_set()


def _packed(name: str, expert: int, matrix: Any) -> PackedMatrix:
    fmt, data = unwrap(matrix)
    n_rows, n_cols = matrix.shape
    return PackedMatrix(name, expert, fmt, n_rows, n_cols, data)

"""What wakes the event loop when an engine's thread has tokens for it, though not for each of them.

Owns the pace. Waking the loop costs a fast model's kernels more than the rest of serving a token: both want the same
cores, and the caches are cold. So tokens that come within REST_SECONDS of the last ones wait for each other; a model
that takes longer for a token than that never waits. Knows nothing of tokens.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

REST_SECONDS = 0.02
"""Two frames of a screen: nobody sees text come in such pieces."""


class Bell:
    """Rung from any thread, waited for on the loop it was made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._resting = False
        self._rung = False  # since the last wait ended

    def ring(self, *, now: bool = False) -> None:
        """There is something: whoever waits is told at the end of the rest, or `now`."""
        self._rung = True  # before looking whether there is a rest, which looks here when it ends
        if now or not self._resting:
            with suppress(RuntimeError):  # the loop was closed while the engine still had something to say
                self._loop.call_soon_threadsafe(self._woken.set)

    async def wait(self) -> None:
        """Until there is something. A rest begins when this returns."""
        await self._woken.wait()
        self._woken.clear()
        self._rung = False
        if not self._resting:
            self._resting = True
            self._loop.call_later(REST_SECONDS, self._rested)

    def _rested(self) -> None:
        self._resting = False
        if self._rung:
            self._woken.set()

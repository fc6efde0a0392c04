"""Whose turn it is: a bounded line in front of a model, fair between namespaces.

Owns the count of those inside, the line, and its order: one namespace after the other, first come first served within
each. A place is taken the moment a request is accepted, so the bound holds whatever happens in between. Belongs to one
event loop; knows nothing of models or requests.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from dataclasses import dataclass

from freehold.server.errors import ApiError

LONGEST_RETRY = 600
"""Seconds; a client that is told to come back later than this does not come back."""

_MEMORY = 0.8  # weight of the past in the running mean of service times


@dataclass(frozen=True)
class QueueLimits:
    """max_running: requests inside at once. max_waiting: those in line behind them; the next is refused."""

    max_running: int = 64
    max_waiting: int = 256


class Place:
    """A place in the line, then inside. `leave` gives it back."""

    def __init__(self, queue: FairQueue, namespace: str) -> None:
        self._queue = queue
        self.namespace = namespace
        self.entered = asyncio.get_running_loop().create_future()
        self.entered_at: float | None = None  # time.monotonic
        self.left = False

    async def turn(self) -> None:
        """Wait until it is inside. Raises what `leave` was given meanwhile. Who stops waiting must still leave."""
        await self.entered

    def leave(self, error: Exception | None = None) -> None:
        """Give the place back, from the line or from inside; who waits in `turn` gets `error`. Again: nothing."""
        if self.left:
            return
        self.left = True
        if not self.entered.done():
            if error is None:
                self.entered.cancel()
            else:
                self.entered.set_exception(error)
                self.entered.exception()  # it may be that nobody waits
        self._queue._left(self)


class FairQueue:
    """Lets max_running requests in at once."""

    def __init__(self, limits: QueueLimits | None = None) -> None:
        self._limits = limits or QueueLimits()
        self._lines: OrderedDict[str, deque[Place]] = OrderedDict()  # by namespace, whose turn is next first
        self._mean_seconds = 1.0  # that a request spends inside
        self.n_running = 0
        self.n_waiting = 0

    def check(self) -> None:
        """Raises ApiError 429, with the seconds after which to try again, if the line is full."""
        if self._is_full and self.n_waiting >= self._limits.max_waiting:
            seconds = self._retry_after()
            raise ApiError(
                429,
                f"this model answers {self.n_running} requests and {self.n_waiting} wait, as many as may; "
                f"try again in {seconds} s",
                code="queue_full",
                headers={"retry-after": str(seconds)},
            )

    def join(self, namespace: str) -> Place:
        """Take a place, inside or at the end of the namespace's line. Raises as `check`."""
        self.check()
        place = Place(self, namespace)
        if self._is_full:
            self._lines.setdefault(namespace, deque()).append(place)
            self.n_waiting += 1
        else:
            self._enter(place)
        return place

    @property
    def _is_full(self) -> bool:
        return self.n_running >= self._limits.max_running

    def _enter(self, place: Place) -> None:
        self.n_running += 1
        place.entered_at = time.monotonic()
        if not place.entered.done():  # cancelled, and about to leave
            place.entered.set_result(None)

    def _left(self, place: Place) -> None:
        if place.entered_at is None:
            line = self._lines[place.namespace]
            line.remove(place)
            if not line:
                del self._lines[place.namespace]
            self.n_waiting -= 1
            return
        self.n_running -= 1
        seconds = time.monotonic() - place.entered_at
        self._mean_seconds = _MEMORY * self._mean_seconds + (1 - _MEMORY) * seconds
        while self._lines and not self._is_full:
            self._enter(self._next())

    def _next(self) -> Place:
        """Out of the line of the namespace whose turn it is, which then goes behind all others."""
        namespace, line = self._lines.popitem(last=False)
        place = line.popleft()
        if line:
            self._lines[namespace] = line
        self.n_waiting -= 1
        return place

    def _retry_after(self) -> int:
        """Whole seconds in which the line is served at the recent pace, at least 1."""
        seconds = self._mean_seconds * self.n_waiting / self._limits.max_running
        return min(max(1, math.ceil(seconds)), LONGEST_RETRY)

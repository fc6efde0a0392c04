"""Whether an engine is alive: its thread ended or stuck is noticed without waiting for it.

An engine takes notice of a cancelled generation within one step, so a generation that is cancelled at once measures
the step under way and costs nothing else. Knows no model and no request.
"""

from __future__ import annotations

import time

from freehold.core import SamplingParams
from freehold.engine import Engine, Generation
from freehold.errors import EngineError

STUCK_SECONDS = 300.0
"""No step of any model on any machine takes this long; one that does is not coming back."""

_NOTHING = SamplingParams(max_tokens=1)


class Pulse:
    """Feels the pulse of one engine. Not thread-safe."""

    def __init__(self, engine: Engine, stuck_seconds: float = STUCK_SECONDS) -> None:
        self._engine = engine
        self._stuck_seconds = stuck_seconds
        self._beat: Generation | None = None
        self._asked_at = 0.0
        self.stopped = False  # for good: only a new engine helps

    def check(self) -> str | None:
        """What is wrong with the engine, or None. Returns at once; that a step takes too long shows from the second
        call on.
        """
        if self._beat is not None and self._beat.finish_reason is None:
            seconds = time.monotonic() - self._asked_at
            return f"no step has ended for {seconds:.0f} s" if seconds > self._stuck_seconds else None
        try:
            self._beat = self._engine.submit([0], _NOTHING)
        except EngineError:
            self.stopped = True
            return "its engine has stopped"
        self._beat.cancel()
        self._asked_at = time.monotonic()
        return None

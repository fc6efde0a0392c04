"""A loader of scripted models, for tests of the pool: it can be slow, fail, and say what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from freehold.runtime import LocalModel
from freehold.server.source import Footprint, ModelSource
from scripted_model import ScriptedLocalModel, scripted

MODEL_BYTES = 10**9
"""What each of these models takes in memory."""


class FakeLoader:
    """A server.source.Loader. `gate`, when set, holds every load back until it is opened; `error` fails the next."""

    def __init__(self, *names: str, answer: str = "Paris") -> None:
        self.names = list(names)
        self.answer = answer
        self.loads: list[str] = []
        self.budgets: list[int | None] = []
        self.models: list[ScriptedLocalModel] = []
        self.gate: threading.Event | None = None
        self.error: Exception | None = None
        self.n_loading = 0
        self.overlapped = False

    def sources(self) -> Sequence[ModelSource]:
        return [ModelSource(name, (f"{name}:small", f"Alias-{name}"), 1_700_000_000, 5, "gguf") for name in self.names]

    def measure(self, source: ModelSource) -> Footprint:
        return Footprint(MODEL_BYTES, 256, "llama", 7)

    def load(self, source: ModelSource, budget: int | None, alive: Callable[[], None]) -> LocalModel:
        self.n_loading += 1
        self.overlapped |= self.n_loading > 1
        try:
            self.loads.append(source.name)
            self.budgets.append(budget)
            end = time.monotonic() + 10
            while self.gate is not None and not self.gate.is_set() and time.monotonic() < end:
                alive()
                time.sleep(0.002)
            error, self.error = self.error, None
            if error is not None:
                raise error
            n_kv = 2 * 256 * 4
            model = scripted(self.answer, budget=MODEL_BYTES)
            # One that takes MODEL_BYTES in all, whatever the shape of the scripted model.
            object.__setattr__(model.plan, "weight_bytes", MODEL_BYTES - n_kv)
            self.models.append(model)
            return model
        finally:
            self.n_loading -= 1

    def close(self) -> None:
        for model in self.models:
            if model.script.gate is not None:
                model.script.gate.release(1000)
            model.close()

"""The models that are being served."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from freehold.runtime import LocalModel
from freehold.server.errors import ApiError
from freehold.server.queue import FairQueue


@dataclass(frozen=True)
class ModelCard:
    """A model as lists show it. created: seconds since the epoch."""

    name: str
    created: int
    loaded: bool
    n_bytes: int | None = None
    context: int | None = None


class Lease:
    """The use of a loaded model, which is not unloaded until it is released."""

    def __init__(self, name: str, model: LocalModel, queue: FairQueue) -> None:
        self.name = name
        self.model = model
        self.queue = queue

    def release(self) -> None:
        """Give it back. A second time does nothing."""


class ModelPool:
    """Models by name."""

    def __init__(self, models: Mapping[str, LocalModel]) -> None:
        self._models = dict(models)
        self._queues = {name: FairQueue() for name in models}
        self._created = int(time.time())

    def cards(self) -> list[ModelCard]:
        """All that can be asked for."""
        return [ModelCard(name, self._created, True, None, model.max_context) for name, model in self._models.items()]

    def resolve(self, name: str) -> str:
        """The name a model is served under. Raises ApiError 404 with the nearest names."""
        for known in self._models:
            if known.lower() == name.lower():
                return known
        near = difflib.get_close_matches(name, self._models, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ApiError(404, f"no model {name[:100]!r}{hint}", code="model_not_found", param="model")

    async def lease(self, name: str) -> Lease:
        """Load it if need be."""
        known = self.resolve(name)
        return Lease(known, self._models[known], self._queues[known])

    async def close(self) -> None:
        """Close every model."""
        for model in self._models.values():
            model.close()

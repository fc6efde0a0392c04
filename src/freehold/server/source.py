"""Models that could be served but are not in memory: what is known of them, and who loads them.

Owns the seam between the pool, which decides when a model is loaded and what it may take, and the loader, which knows
files. Nothing here or above it ever sees a path that came with a request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from freehold.runtime import LocalModel


@dataclass(frozen=True)
class ModelSource:
    """A model that is present on this machine. None means not known.

    created: seconds since the epoch. n_bytes: of its files. digest: SHA-256 of the model file, hexadecimal.
    """

    name: str
    aliases: tuple[str, ...] = ()
    created: int = 0
    n_bytes: int | None = None
    format: str | None = None
    quantization: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Footprint:
    """What is known of a model before it is loaded. n_bytes: memory for the weights, working memory and the KV cache
    of one conversation as long as the context allows; None if it cannot be told.
    """

    n_bytes: int | None = None
    context: int | None = None
    family: str | None = None
    n_parameters: int | None = None


class Loader(Protocol):
    """Finds and loads models. `measure` and `load` are called from a worker thread, one call at a time."""

    def sources(self) -> Sequence[ModelSource]:
        """All models that can be loaded now. Quick: a few file headers at most."""
        ...

    def measure(self, source: ModelSource) -> Footprint:
        """What the model will take. Raises FreeholdError."""
        ...

    def load(self, source: ModelSource, budget: int | None, alive: Callable[[], None]) -> LocalModel:
        """The model, within `budget` bytes of memory; None sets no bound beside the machine's own.

        `alive` is called now and then, and raises when the load is no longer wanted. Raises FreeholdError.
        """
        ...

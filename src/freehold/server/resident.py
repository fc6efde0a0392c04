"""A model in memory, as the pool keeps it and as others see it.

Owns what is known of one loaded model: its queue, its pulse, its users, its counters; and the card that lists show.
Decides nothing: the pool does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from freehold.runtime import LocalModel
from freehold.server.pulse import Pulse
from freehold.server.queue import FairQueue
from freehold.server.source import Footprint, ModelSource


@dataclass(frozen=True)
class ModelCard:
    """A model as lists show it; None means not known, or not before it is loaded.

    created, expires: seconds since the epoch; expires is when it will be unloaded if nobody asks for it. n_bytes: of
    its files. memory: bytes it takes while loaded.
    """

    name: str
    created: int
    loaded: bool
    n_bytes: int | None = None
    context: int | None = None
    aliases: tuple[str, ...] = ()
    format: str | None = None
    quantization: str | None = None
    family: str | None = None
    n_parameters: int | None = None
    digest: str | None = None
    memory: int | None = None
    expires: float | None = None


@dataclass(eq=False)
class Resident:
    """A model in memory. fixed: given from outside, never unloaded. dropped: closed once its last lease is released."""

    source: ModelSource
    model: LocalModel
    queue: FairQueue
    pulse: Pulse
    footprint: Footprint
    keep_alive: float
    fixed: bool = False
    n_leases: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    timer: asyncio.TimerHandle | None = None
    dropped: bool = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def memory(self) -> int:
        """Bytes of weights, KV cache and working memory."""
        return self.model.plan.budget - self.model.plan.spare_bytes

    @property
    def expires(self) -> float | None:
        """When it will be unloaded if nobody asks for it, in seconds since the epoch; None for never."""
        if self.fixed or self.keep_alive < 0:
            return None
        idle = 0.0 if self.n_leases else time.monotonic() - self.idle_since
        return time.time() + self.keep_alive - idle

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def counts(self) -> dict[str, int]:
        """The engine's counters that only grow."""
        stats = self.model.engine.stats
        return {
            "prefix_hits": stats.n_prefix_hits,
            "cached_tokens": stats.n_cached_tokens,
            "prefill_tokens": stats.n_prefill_tokens,
            "decode_tokens": stats.n_decode_tokens,
            "preemptions": stats.n_preemptions,
        }


class Lease:
    """The use of a loaded model, which is not unloaded until it is released."""

    def __init__(self, resident: Resident, released: Callable[[Resident], None]) -> None:
        self.name = resident.name
        self.model = resident.model
        self.queue = resident.queue
        self._resident: Resident | None = resident
        self._on_release = released

    def release(self) -> None:
        """Give it back. A second time does nothing."""
        resident, self._resident = self._resident, None
        if resident is not None:
            self._on_release(resident)


def card_of(source: ModelSource, footprint: Footprint, resident: Resident | None) -> ModelCard:
    """What lists show of a model, loaded or not."""
    card = ModelCard(
        name=source.name,
        created=source.created,
        loaded=resident is not None,
        n_bytes=source.n_bytes,
        context=footprint.context,
        aliases=source.aliases,
        format=source.format,
        quantization=source.quantization,
        family=footprint.family,
        n_parameters=footprint.n_parameters,
        digest=source.digest,
    )
    if resident is None:
        return card
    return replace(card, context=resident.model.max_context, memory=resident.memory, expires=resident.expires)

"""The models that are being served: loaded when first asked for, kept while there is room, unloaded when idle.

Owns which models are in memory, who uses them, and the memory they may take together. Loading and closing happen on one
worker thread, one at a time; all decisions are made on the event loop. Knows no files: a Loader does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from freehold.errors import FreeholdError, ResourceError
from freehold.runtime import LocalModel
from freehold.server import names
from freehold.server.errors import ApiError
from freehold.server.pulse import Pulse
from freehold.server.queue import FairQueue, QueueLimits
from freehold.server.resident import Lease, ModelCard, Resident, card_of
from freehold.server.source import Footprint, Loader, ModelSource

log = logging.getLogger("freehold.server")

LOOK_SECONDS = 5.0
"""How long a listing of what can be loaded is good for."""

CLOSE_SECONDS = 30.0
"""How long the end of the server waits for models to close, which ends with the step under way."""


@dataclass(frozen=True)
class PoolLimits:
    """budget: bytes that all models together may take; None sets no bound. max_models: how many may be loaded.
    keep_alive: seconds an idle model stays; 0 unloads it at once, a negative number never.
    """

    budget: int | None = None
    max_models: int | None = None
    keep_alive: float = 300.0


@dataclass(eq=False)
class _Loading:
    """A load under way, and those who wait for it."""

    source: ModelSource
    task: asyncio.Task[None] | None = None
    waiters: list[asyncio.Future[Lease]] = field(default_factory=list)


class ModelPool:
    """Models by name: `models` as they are, and what `loader` finds. Belongs to one event loop.

    default: the model that answers to any name.
    """

    def __init__(
        self,
        models: Mapping[str, LocalModel] | None = None,
        *,
        loader: Loader | None = None,
        limits: PoolLimits | None = None,
        queue: QueueLimits | None = None,
        default: str | None = None,
    ) -> None:
        self.limits = limits or PoolLimits()
        self.n_loads: Counter[tuple[str, str]] = Counter()  # by model and outcome: loaded, failed
        self.n_unloads: Counter[tuple[str, str]] = Counter()  # by model and reason: idle, evicted, failed, shutdown
        self.load_seconds: defaultdict[str, float] = defaultdict(float)
        self._loader = loader
        self._queue = queue or QueueLimits()
        self._default = default
        self._created = int(time.time())
        self._sources: list[ModelSource] = []
        self._looked_at = float("-inf")
        self._footprints: dict[str, Footprint] = {}  # of every model ever loaded
        self._residents: dict[str, Resident] = {}
        self._dropped: dict[Resident, asyncio.Task[None] | None] = {}  # with the task that closes it, once it may
        self._past: dict[str, Counter[str]] = {}  # the counters of engines that are gone
        self._loading: dict[str, _Loading] = {}
        self._turn = asyncio.Lock()  # held by the one load that makes room and loads
        self._worker = ThreadPoolExecutor(1, "freehold-loader")
        self._closing = False
        for name, model in (models or {}).items():
            self._admit(ModelSource(name, created=self._created), model, Footprint(), fixed=True)

    def cards(self) -> list[ModelCard]:
        """All that can be asked for."""
        return [self._card(source) for source in self._known(fresh=True)]

    def card(self, name: str) -> ModelCard:
        """One of them. Raises ApiError 404 as `resolve`."""
        known = self.resolve(name)
        return next(self._card(source) for source in self._known() if source.name == known)

    def resolve(self, name: str) -> str:
        """The name a model is served under. Raises ApiError 404 with the nearest name and the list."""
        try:
            return names.resolve(name, self._known())
        except ApiError:
            return names.resolve(name, self._known(fresh=True), self._default)

    async def lease(self, name: str) -> Lease:
        """The model, loaded if need be. Raises ApiError: 404 for an unknown name, 500 or 503 where it does not work."""
        if self._closing:
            raise shutting_down()
        known = self.resolve(name)
        resident = self._working(known)
        if resident is not None:
            return self._leased(resident)
        loading = self._loading.get(known) or self._begin(known)
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        loading.waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()  # it was loaded in the moment in which we were cancelled
            raise

    def keep(self, name: str, seconds: float) -> None:
        """Set how long a loaded model stays once it is idle, as PoolLimits.keep_alive, until it is unloaded."""
        resident = self._residents.get(self.resolve(name))
        if resident is not None:
            resident.keep_alive = seconds
            self._watch(resident)

    def problems(self) -> list[str]:
        """What is wrong with loaded models, by name; quick, and empty if all is well."""
        found = [(resident.name, resident.pulse.check()) for resident in self._residents.values()]
        return [f"{name}: {problem}" for name, problem in found if problem is not None]

    @property
    def residents(self) -> list[Resident]:
        """The models in memory, those that are about to leave it included."""
        return [*self._residents.values(), *self._dropped]

    def engine_counts(self) -> dict[str, Counter[str]]:
        """By model, the growing fields of EngineStats, over all engines it has had."""
        counts = {name: Counter(past) for name, past in self._past.items()}
        for resident in self.residents:
            counts.setdefault(resident.name, Counter()).update(resident.counts())
        return counts

    def end_loads(self) -> None:
        """Load nothing more; whoever waits for a model is refused."""
        self._closing = True
        for loading in self._loading.values():
            _settle(loading.waiters, shutting_down())

    async def close(self) -> None:
        """Close every model, in use or not. What hangs is left behind (see `residents`)."""
        self.end_loads()
        for resident in [*self._residents.values()]:
            self._drop(resident, "shutdown", in_use=True)
        for resident in [*self._dropped]:
            self._close_if_free(resident)
        end = time.monotonic() + CLOSE_SECONDS
        while (tasks := self._tasks()) and time.monotonic() < end:
            await asyncio.wait(tasks, timeout=end - time.monotonic())
        self._worker.shutdown(wait=False)

    def _tasks(self) -> list[asyncio.Task[None]]:
        loads = [loading.task for loading in self._loading.values() if loading.task is not None]
        return [*loads, *(task for task in self._dropped.values() if task is not None)]

    def _known(self, *, fresh: bool = False) -> list[ModelSource]:
        """What is loaded, then what could be; looked up anew if that is asked for and some time has passed."""
        now = time.monotonic()
        if self._loader is not None and fresh and now - self._looked_at > LOOK_SECONDS:
            self._sources, self._looked_at = list(self._loader.sources()), now
        loaded = {resident.name: resident.source for resident in self._residents.values()}
        return [*loaded.values(), *(source for source in self._sources if source.name not in loaded)]

    def _card(self, source: ModelSource) -> ModelCard:
        footprint = self._footprints.get(source.name, Footprint())
        return card_of(source, footprint, self._residents.get(source.name))

    def _working(self, name: str) -> Resident | None:
        """The loaded model; None if there is none, or none any more. Raises ApiError 503 for one that hangs."""
        resident = self._residents.get(name)
        problem = resident and resident.pulse.check()
        if resident is None or problem is None:
            return resident
        if not resident.pulse.stopped or resident.fixed:
            raise ApiError(503, f"the model {name} does not answer any more: {problem}", code="model_failed")
        self._drop(resident, "failed", in_use=True)
        return None

    def _leased(self, resident: Resident) -> Lease:
        resident.n_leases += 1
        self._watch(resident)
        return Lease(resident, self._released)

    def _released(self, resident: Resident) -> None:
        resident.n_leases -= 1
        resident.idle_since = time.monotonic()
        if resident.dropped:
            self._close_if_free(resident)
        else:
            self._watch(resident)

    def _watch(self, resident: Resident) -> None:
        """Set the timer that unloads an idle model; a model in use has none."""
        resident.stop_timer()
        if not (resident.n_leases or resident.fixed or resident.keep_alive < 0):
            left = resident.keep_alive - (time.monotonic() - resident.idle_since)
            resident.timer = asyncio.get_running_loop().call_later(left, self._drop, resident, "idle")

    def _begin(self, name: str) -> _Loading:
        source = next((source for source in self._known() if source.name == name), None)
        if source is None:  # it was loaded and failed, and its files are gone by now
            raise ApiError(404, f"the model {name} is not here any more", code="model_not_found", param="model")
        loading = self._loading[name] = _Loading(source)
        loading.task = asyncio.get_running_loop().create_task(self._load(name, loading))
        return loading

    async def _load(self, name: str, loading: _Loading) -> None:
        """Load a model and give each waiter its lease, or each the reason why not."""
        try:
            async with self._turn:
                resident = await self._loaded(loading.source)
        except Exception as error:
            self.n_loads[name, "failed"] += 1
            if not self._closing:
                expected = isinstance(error, (ApiError, FreeholdError))
                log.error("loading %s failed: %s", name, error, exc_info=not expected)
            _settle(loading.waiters, _load_error(name, error))
        else:
            for waiter in loading.waiters:
                if not waiter.done():
                    waiter.set_result(self._leased(resident))
            self._watch(resident)  # it may be that nobody waited to the end
        finally:
            del self._loading[name]

    async def _loaded(self, source: ModelSource) -> Resident:
        assert self._loader is not None
        run = partial(asyncio.get_running_loop().run_in_executor, self._worker)
        footprint = await run(self._loader.measure, source)
        budget = await self._make_room(source.name, footprint.n_bytes)
        if self._closing:
            raise shutting_down()
        start = time.monotonic()
        model = await run(self._loader.load, source, budget, self._check_wanted)
        seconds = time.monotonic() - start
        resident = self._admit(source, model, footprint)
        self.n_loads[source.name, "loaded"] += 1
        self.load_seconds[source.name] += seconds
        took, memory = f"{seconds:.1f} s", _gb(resident.memory)
        log.info("loaded %s in %s: context %d, %s of memory", source.name, took, model.max_context, memory)
        if self._closing:
            self._drop(resident, "shutdown")
            raise shutting_down()
        return resident

    def _check_wanted(self) -> None:
        """Called from the worker thread while it loads."""
        if self._closing:
            raise shutting_down()

    def _admit(self, source: ModelSource, model: LocalModel, footprint: Footprint, *, fixed: bool = False) -> Resident:
        queue, pulse = FairQueue(self._queue), Pulse(model.engine)
        resident = Resident(source, model, queue, pulse, footprint, self.limits.keep_alive, fixed)
        self._residents[source.name] = resident
        self._footprints[source.name] = footprint
        return resident

    async def _make_room(self, name: str, needed: int | None) -> int | None:
        """Unload idle models, the least recently used first, until `needed` bytes are free; returns what is free.

        Less than needed is returned only where nothing else is loaded, so that a model always gets the context it would
        get alone. Raises ApiError 503 with the numbers when models in use are in the way.
        """
        while True:
            await self._wait_for_closes()
            budget, taken = self.limits.budget, sum(resident.memory for resident in self.residents)
            free = None if budget is None else budget - taken
            full = self.limits.max_models is not None and len(self.residents) >= self.limits.max_models
            if not full and (free is None or needed is None or needed <= free or not self.residents):
                return free
            idle = [r for r in self._residents.values() if not (r.n_leases or r.fixed)]
            if not idle:
                raise self._no_room(name, needed, free, full)
            self._drop(min(idle, key=lambda resident: resident.idle_since), "evicted")

    async def _wait_for_closes(self) -> None:
        while closes := [task for task in self._dropped.values() if task is not None]:
            await asyncio.wait(closes)

    def _no_room(self, name: str, needed: int | None, free: int | None, full: bool) -> ApiError:
        busy = ", ".join(f"{resident.name} ({_gb(resident.memory)})" for resident in self.residents)
        if full:
            why = f"{len(self.residents)} models are loaded, as many as --max-models allows"
        else:
            why = f"it needs {_gb(needed or 0)} and {_gb(free or 0)} of {_gb(self.limits.budget or 0)} are free"
        message = f"{name} cannot be loaded now: {why}, and those in memory are in use: {busy}. Try again later"
        return ApiError(503, message, code="insufficient_memory", headers={"retry-after": "10"})

    def _drop(self, resident: Resident, reason: str, *, in_use: bool = False) -> None:
        """Take a model out of service, and close it as soon as nobody uses it or can."""
        assert in_use or not resident.n_leases, "a model in use is not unloaded"
        resident.stop_timer()
        del self._residents[resident.name]
        resident.dropped = True
        self._dropped[resident] = None
        self.n_unloads[resident.name, reason] += 1
        log.info("unloading %s: %s", resident.name, reason)
        self._close_if_free(resident)

    def _close_if_free(self, resident: Resident) -> None:
        free = not resident.n_leases or resident.pulse.stopped or self._closing
        if free and self._dropped.get(resident, False) is None:
            self._dropped[resident] = asyncio.get_running_loop().create_task(self._close(resident))

    async def _close(self, resident: Resident) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._worker, resident.model.close)
        except Exception:
            log.exception("closing %s failed", resident.name)
        self._past.setdefault(resident.name, Counter()).update(resident.counts())
        del self._dropped[resident]


def _settle(waiters: Iterable[asyncio.Future[Lease]], error: ApiError) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)


def _load_error(name: str, error: Exception) -> ApiError:
    """What the client is told: numbers where memory is short, and nothing else of our files and insides."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ResourceError):
        return ApiError(503, str(error), code="insufficient_memory")
    return ApiError(500, f"the model {name} could not be loaded; the server's log says why", code="model_error")


def shutting_down() -> ApiError:
    """The answer to requests that come, or are not done, when the server ends."""
    return ApiError(503, "the server is shutting down", code="shutting_down", headers={"retry-after": "10"})


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"

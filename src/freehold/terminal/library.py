"""The models of this machine, as the server loads them: those named on the command line, and the store's.

Owns the way from a served name to files, and what a model may take of the memory that is left. The server never sees a
path. Nothing here is fetched: that happens before the server starts.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.budget import MemoryPlan, plan_memory
from freehold.errors import FreeholdError, ModelFileError, NotFoundError, RequestError
from freehold.footprints import footprint_of_checkpoint
from freehold.hardware import detect
from freehold.hub import Store, StoredModel, resolve
from freehold.hub.catalog import find_entry
from freehold.hub.selection import shard_paths
from freehold.hub.store import check_name
from freehold.loading import KV_ELEMENT_BYTES, load
from freehold.models import Precision, residence
from freehold.models.rounding import Rounding
from freehold.runtime import LocalModel
from freehold.server.source import Footprint, ModelSource
from freehold.shapes import kv_token_bytes
from freehold.weights import open_checkpoint

log = logging.getLogger("freehold.server")

CONVERSATIONS = 4
"""Full contexts that a model's KV cache holds where memory allows."""


@dataclass(frozen=True)
class LoadOptions:
    """How every model is loaded, as `loading.load` says."""

    precision: Precision = "exact"
    weights: Rounding = "auto"
    measure: bool = True
    context: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class _Measure:
    """Bytes of the weights in memory, of what must stay free beside them and the KV cache, and of one token in that;
    None is not known before loading.
    """

    weight_bytes: int
    working_bytes: int
    token_bytes: int | None
    max_context: int | None


class Library:
    """A server.source.Loader. named: name to path, of models outside of the store; only: those of the store that are
    served, None for all of them.
    """

    def __init__(
        self, named: Mapping[str, Path], store: Store, options: LoadOptions, only: frozenset[str] | None = None
    ) -> None:
        self._named = dict(named)
        self._named_sources = [_named_source(name, path) for name, path in named.items()]
        self._store = store
        self._options = options
        self._only = only
        self._measures: dict[str, _Measure] = {}

    def sources(self) -> Sequence[ModelSource]:
        """The models named first, then those of the store that are whole."""
        try:
            stored = [model for model in self._store.models() if model.problem is None and self._is_served(model.name)]
        except FreeholdError as error:  # the models that are loaded, and those outside of the store, go on
            log.error("the store cannot be read: %s", error)
            stored = []
        return [
            *self._named_sources,
            *(_stored_source(model) for model in stored if model.name not in self._named),
        ]

    def measure(self, source: ModelSource) -> Footprint:
        """Read the files' headers."""
        options = self._options
        with open_checkpoint(self._path(source.name)) as checkpoint:
            config = checkpoint.config
            weight_bytes = residence(checkpoint, options.precision, options.weights).n_bytes
            footprint = footprint_of_checkpoint(checkpoint)
            token_bytes = kv_token_bytes(config, KV_ELEMENT_BYTES[options.precision])
            family, longest = config.get("model_type"), config.get("max_position_embeddings")
            n_parameters = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
        max_context = longest if isinstance(longest, int) else None
        context = options.context or max_context
        working = footprint.reserve_bytes(weight_bytes, context or 0, options.threads or detect().n_threads)
        self._measures[source.name] = _Measure(weight_bytes, working, token_bytes, max_context)
        known = token_bytes is not None and context is not None
        n_bytes = weight_bytes + working + (token_bytes or 0) * (context or 0) if known else None
        return Footprint(n_bytes, context, family if isinstance(family, str) else None, n_parameters)

    def load(self, source: ModelSource, budget: int | None, alive: Callable[[], None]) -> LocalModel:
        """Load a model that was measured. Its KV cache takes no more than half of what the weights leave, or what one
        conversation takes: another model shall have room beside it.
        """
        context, conversations = self._options.context, CONVERSATIONS
        measure = self._measures[source.name]
        if budget is not None and measure.token_bytes is not None and measure.max_context is not None:
            plan = plan_memory(
                weight_bytes=measure.weight_bytes,
                working_bytes=measure.working_bytes,
                token_bytes=measure.token_bytes,
                max_context=measure.max_context,
                context=context,
                budget=budget,
                what=source.name,
            )
            conversations = _conversations(plan)
            if plan.note is not None:
                log.warning("%s", plan.note)
                context = plan.context
        path = self._named.get(source.name)
        return load(
            source.name if path is None else path,
            precision=self._options.precision,
            weights=self._options.weights,
            measure_rounding=self._options.measure,
            context=context,
            threads=self._options.threads,
            conversations=conversations,
            progress=lambda what, done, total: alive(),
            note=log.info,
        )

    def _is_served(self, name: str) -> bool:
        return self._only is None or name in self._only

    def _path(self, name: str) -> Path:
        return self._named.get(name) or self._store.path(name)


def read_models(words: Sequence[str], store: Store, fetch: Callable[[str], None]) -> tuple[list[str], dict[str, Path]]:
    """The names of the models that were asked for, and the paths of those outside of the store.

    A word is a name, a path, or NAME=PATH. `fetch` gets what is in the catalogue and not yet in the store. Raises
    NotFoundError, RequestError.
    """
    names: list[str] = []
    paths: dict[str, Path] = {}
    for word in words:
        given, separator, rest = word.partition("=")
        if separator and os.path.exists(word):
            given, separator, rest = "", "", word
        resolved = resolve(Path(rest) if separator else word, store)
        name = check_name(given) if separator else resolved.name
        if resolved.kind == "pullable":
            fetch(name)
        elif resolved.kind == "path" and resolved.path is not None:
            if name in paths and paths[name] != resolved.path:
                raise RequestError(f"two models are called {name!r}; give one another name, as in NAME={rest or word}")
            paths[name] = resolved.path
        names.append(name)
    return list(dict.fromkeys(names)), paths


def only_model(names: Sequence[str], library: Library) -> str:
    """The one model that is served. Raises RequestError if there are several, NotFoundError if there is none."""
    found = names or [source.name for source in library.sources()]
    if not found:
        raise NotFoundError("there is no model to serve; name one, as in `freehold serve smollm2`")
    if len(found) > 1:
        raise RequestError(f"--any-name is for a single model, but {len(found)} are served; name one")
    return found[0]


def _conversations(plan: MemoryPlan) -> int:
    """Full contexts that fit in half of what the weights leave of the plan's budget, from 1 to CONVERSATIONS."""
    left = plan.budget - plan.weight_bytes - plan.working_bytes
    return min(max(1, left // 2 // max(1, plan.context * plan.token_bytes)), CONVERSATIONS)


def _named_source(name: str, path: Path) -> ModelSource:
    files = shard_paths(path) if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
    entry = find_entry(name)  # a model of the catalogue has its other names wherever it lies
    aliases = (entry.name, *entry.aliases) if entry else ()
    return ModelSource(
        name=name,
        aliases=tuple(alias for alias in aliases if alias != name.lower()),
        created=int(path.stat().st_mtime),
        n_bytes=sum(map(_size, files)) or None,
        format=files[0].suffix.lstrip(".") if files else None,
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:  # a part of a model, or the target of a link, that is not there
        raise ModelFileError(f"{path} cannot be read: {error.strerror}; expected every file of the model") from error


def _stored_source(model: StoredModel) -> ModelSource:
    entry = find_entry(model.name)
    manifest = model.manifest
    return ModelSource(
        name=model.name,
        aliases=entry.aliases if entry else (),
        created=_mtime(model.path),
        n_bytes=manifest.n_bytes if manifest else None,
        format=model.format,
        quantization=entry.precision if entry else None,
        digest=manifest.sha256 if manifest else None,
    )


def _mtime(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:  # it is being removed
        return 0

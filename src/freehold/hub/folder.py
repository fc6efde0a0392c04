"""A model at a URL: one .gguf file with its shards, or a folder laid out as a checkpoint is.

Owns how a folder that cannot be listed is explored: config.json must be there, the index names the shards, the other
files have their usual names. A SHA256SUMS file beside them is believed. Also reads a file or folder of this machine.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from freehold.errors import DownloadError
from freehold.hub.listing import Listing, stored_names
from freehold.hub.names import Address, Local
from freehold.hub.remote import RemoteFile
from freehold.hub.selection import INDEX, TEXT_FILES, Selection, flat_name, select, shard_names
from freehold.hub.web import WebClient, WebError

SUMS = "SHA256SUMS"

_INDEX_LIMIT = 64 << 20
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


def list_address(address: Address) -> Listing:
    """The model at a URL. Raises DownloadError saying what was looked for."""
    client = WebClient(address.url)
    path = unquote(urlsplit(address.url).path)
    if not path.lower().endswith(".gguf"):
        return _list_folder(address, client)
    name = path.rpartition("/")[2]
    flat_name(name, str(address))
    query = urlsplit(address.url).query
    urls = {shard: urljoin(address.url, quote(shard)) + (f"?{query}" if query else "") for shard in shard_names(name)}
    sums = {} if query else _sums(client, urljoin(address.url, SUMS))
    files = [RemoteFile(name, url, _size(client, url), sums.get(name)) for name, url in urls.items()]
    return Listing(Selection(tuple(urls), files[0].name, "gguf"), files, str(address), client=client)


def list_local(local: Local) -> Listing:
    """The model in a file or directory of this machine. Raises DownloadError saying what is there instead."""
    path = local.path
    if path.is_dir():
        selection = select(sorted(entry.name for entry in path.iterdir() if entry.is_file()), None, str(path))
        folder = path
    elif path.suffix.lower() == ".gguf":
        names = shard_names(path.name)
        selection, folder = Selection(tuple(names), names[0], "gguf"), path.parent
    else:
        raise DownloadError(f"{path} is neither a .gguf file nor a directory with config.json and *.safetensors")
    files = []
    for source, name in stored_names(selection, str(path)).items():
        if not (folder / source).is_file():
            raise DownloadError(f"{folder} lacks {source}, a shard of {path.name}")
        facts = (folder / source).stat()
        files.append(RemoteFile(name, "", facts.st_size, local=folder / source))
    return Listing(selection, files, str(local))


def read_index(content: bytes, where: str) -> list[str]:
    """The shards that an index of safetensors names, each once. Raises DownloadError."""
    try:
        weight_map = json.loads(content)["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DownloadError(f"{where} is no index of safetensors: it has no weight_map from tensors to files") from None
    if not all(isinstance(name, str) and name.endswith(".safetensors") and "/" not in name for name in names):
        raise DownloadError(f"{where} names files that are not *.safetensors beside it; nothing was fetched")
    return names


def _list_folder(address: Address, client: WebClient) -> Listing:
    parts = urlsplit(address.url)
    base = parts._replace(path=f"{parts.path.rstrip('/')}/", query="", fragment="").geturl()
    found = {name: _size(client, base + name, missing=-1) for name in TEXT_FILES}
    if found["config.json"] == -1:
        raise DownloadError(
            f"{base} has no config.json; expected the folder of a checkpoint, or the URL of a .gguf file"
        )
    try:
        weights = [*read_index(client.read(base + INDEX, _INDEX_LIMIT), f"{INDEX} at {base}"), INDEX]
    except WebError as error:
        if error.status != 404:
            raise
        weights = ["model.safetensors"]
    sizes = {name: size for name, size in found.items() if size != -1}
    sizes |= {name: _size(client, base + quote(name), missing=-1) for name in weights}
    missing = [name for name, size in sizes.items() if size == -1]
    if missing:
        raise DownloadError(f"{base} has no {', '.join(missing[:3])}")
    sums = _sums(client, base + SUMS)
    selection = Selection(tuple(sizes), ".", "safetensors")
    names = stored_names(selection, base)
    files = [RemoteFile(name, base + quote(path), sizes[path], sums.get(path)) for path, name in names.items()]
    return Listing(selection, files, str(address), client=client)


def _size(client: WebClient, url: str, missing: int | None = None) -> int | None:
    """Bytes of the file at `url`, None if the server does not say; `missing`, where given, if there is none."""
    try:
        with client.open(url, {"Accept-Encoding": "identity"}, method="HEAD") as response:
            length = response.headers.get("Content-Length", "")
            return int(length) if length.isdigit() else None
    except WebError as error:
        if error.status == 404 and missing is not None:
            return missing
        if error.status in (403, 405, 501):  # a signed URL, or a server, that knows GET alone
            return None
        raise


def _sums(client: WebClient, url: str) -> dict[str, str]:
    """Name -> SHA-256, as `sha256sum` writes them; empty if there is no such file."""
    try:
        lines = client.read(url, 1 << 20).decode("utf-8", "replace").splitlines()
    except WebError:
        return {}
    return {match[2]: match[1].lower() for line in lines if (match := _SUM_LINE.fullmatch(line))}


def local_index(directory: Path) -> list[str]:
    """The shards that the index in `directory` names; none without an index. Raises DownloadError."""
    path = directory / INDEX
    if not path.exists():
        return []
    with path.open("rb") as file:
        return read_index(file.read(_INDEX_LIMIT), INDEX)

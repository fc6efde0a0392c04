"""Which files of a repository a model needs, and which are left where they are.

Owns the choice by name alone: a safetensors checkpoint and its tokenizer, or one quantisation of a GGUF repository with
all its shards. Weights as pickles are never taken, nor second copies of the weights in other folders or formats. Knows
nothing of hubs and reads no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freehold.errors import DownloadError, RequestError
from freehold.hub.manifest import name_problem

DEFAULT_QUANT = "Q4_K_M"
"""What a GGUF repository is read as when no quantisation is asked for: about 4.8 bits a weight, near the original."""
INDEX = "model.safetensors.index.json"
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tiktoken.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""The files beside the weights that Freehold reads, as publishers name them."""

_TEXT = re.compile(r"(generation_)?config\.json|tokenizer[\w.-]*\.json|tiktoken\.model|chat_template[\w.-]*", re.ASCII)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})", re.ASCII)
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:(?:IQ|TQ|Q)\d(?:_[A-Z0-9]+)*|MXFP4(?:_[A-Z0-9]+)*|BF16|FP?16|FP?32))(?=[-._]|$)",
    re.IGNORECASE | re.ASCII,
)
_REFUSED = {
    ".bin": "pickle",
    ".pt": "pickle",
    ".pth": "pickle",
    ".ckpt": "pickle",
    ".pkl": "pickle",
    ".onnx": "ONNX",
    ".h5": "HDF5",
    ".msgpack": "msgpack",
    ".tflite": "TFLite",
}


@dataclass(frozen=True)
class Selection:
    """The files to fetch, by path in the repository: `main` is what is opened, "." for the directory of all."""

    names: tuple[str, ...]
    main: str
    format: Literal["safetensors", "gguf"]


def select(names: Sequence[str], quant: str | None, where: str) -> Selection:
    """The files of the repository `where`, of those it has (`names`, "/" between folders), that the model needs.

    Raises DownloadError when it holds no such model, or names no file may have; RequestError when a choice is missing
    or impossible. Both list what there is.
    """
    _check_paths(names, where)
    weights = _safetensors(names)
    ggufs = _quants(names)
    if quant is None and weights and "config.json" in names:
        return Selection((*(name for name in names if _TEXT.fullmatch(name)), *weights), ".", "safetensors")
    if ggufs:
        return _choose(ggufs, quant, where)
    if quant is not None and weights:
        raise RequestError(
            f"{where} holds safetensors and no quantisations, but {quant} was asked for; leave :{quant} out, or name a "
            f"repository of GGUF files"
        )
    raise DownloadError(f"{where} holds no model that Freehold reads: {_what_there_is(names)}")


def shard_names(name: str) -> list[str]:
    """All the shards of a file called `...-00001-of-00003.SUFFIX`; of another file, itself."""
    stem, dot, suffix = name.rpartition(".")
    match = _SHARD.fullmatch(stem)
    if match is None or not 1 <= int(match["index"]) <= int(match["count"]):
        return [name]
    count, width = int(match["count"]), len(match["index"])
    return [f"{match['stem']}-{index:0{width}}-of-{match['count']}{dot}{suffix}" for index in range(1, count + 1)]


def shard_paths(path: Path) -> list[Path]:
    """The file at `path` with its other shards, whether they are there or not; of another file, itself."""
    return [path.with_name(name) for name in shard_names(path.name)]


def first_shard(path: Path) -> Path:
    """What a path means: of a GGUF model in parts the first, if that is there, so that each part means the same."""
    first = path.with_name(shard_names(path.name)[0]) if path.suffix.lower() == ".gguf" else path
    return first if first.exists() else path


def _check_paths(names: Sequence[str], where: str) -> None:
    """A name that reaches out of its folder betrays a hostile hub, even where the file is not wanted."""
    for name in names:
        parts = name.split("/")
        if "" in parts or ".." in parts or "." in parts or "\\" in name or ":" in parts[0] or not name.isprintable():
            raise DownloadError(
                f"{where} names a file {name[:100]!r}, which could leave its folder; nothing was fetched"
            )


def _safetensors(names: Sequence[str]) -> list[str]:
    """The weights at the top of a repository, without second copies of them (`consolidated`, `original/`, `metal/`)."""
    top = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if INDEX in names:
        shards = [name for name in top if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name, re.ASCII)]
        if shards:
            return [*shards, INDEX]
        return [*(name for name in top if not name.startswith(("consolidated", "adapter"))), INDEX] if top else []
    if "model.safetensors" in top:
        return ["model.safetensors"]
    return [name for name in top if not name.startswith(("consolidated", "adapter"))]


def _quants(names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Quantisation -> model -> its files, of the GGUF files that hold a language model."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        base = name.rpartition("/")[2]
        if not base.lower().endswith(".gguf") or "mmproj" in base.lower() or "imatrix" in base.lower():
            continue
        stem = name[: -len(".gguf")]
        shard = _SHARD.fullmatch(stem)
        stem = shard["stem"] if shard else stem
        tokens = _QUANT.findall(stem.rpartition("/")[2]) or _QUANT.findall(stem.partition("/")[0])
        quant = tokens[-1].upper() if tokens else ""
        found.setdefault(quant, {}).setdefault(stem, []).append(name)
    return found


def _choose(ggufs: Mapping[str, Mapping[str, Sequence[str]]], quant: str | None, where: str) -> Selection:
    choices = ", ".join(sorted(filter(None, ggufs)))
    wanted = quant or (DEFAULT_QUANT if DEFAULT_QUANT in ggufs else next(iter(ggufs)) if len(ggufs) == 1 else None)
    if wanted is None:
        raise RequestError(f"{where} has no {DEFAULT_QUANT}, the default; add one of its own, as :QUANT: {choices}")
    if wanted not in ggufs:
        raise RequestError(f"{where} has no {wanted}; its quantisations are: {choices or 'none that are named'}")
    models = ggufs[wanted]
    if len(models) > 1:
        files = ", ".join(sorted(name for group in models.values() for name in group)[:8])
        raise RequestError(
            f"{where} has {len(models)} models of {wanted or 'no named quantisation'}; give the URL of one: {files}"
        )
    files_of = sorted(next(iter(models.values())))
    missing = sorted(set(shard_names(files_of[0])) - set(files_of))
    if missing:
        raise DownloadError(f"{where} lacks {len(missing)} shards of {wanted}: {', '.join(missing[:3])}")
    return Selection(tuple(files_of), files_of[0].rpartition("/")[2], "gguf")


def _what_there_is(names: Sequence[str]) -> str:
    refused = {name: kind for name in names for suffix, kind in _REFUSED.items() if name.lower().endswith(suffix)}
    if refused:
        shown = ", ".join(f"{name} ({kind})" for name, kind in list(refused.items())[:5])
        why = "; pickles can run code when opened and are never read" if "pickle" in refused.values() else ""
        return f"its weights are {shown}, which are refused{why}. Look for safetensors or GGUF"
    if any(name.endswith(".safetensors") for name in names):
        return "it has safetensors, but no config.json with them at the top"
    shown = ", ".join(list(names)[:5])
    return f"it has {shown or 'no files'}; expected config.json with *.safetensors, or *.gguf"


def flat_name(name: str, where: str) -> str:
    """The file's name in the store, without its folders. DownloadError for one that a file may not have everywhere."""
    base = name.rpartition("/")[2]
    problem = name_problem(base)
    if problem:
        raise DownloadError(f"{where} names a file {name[:100]!r}, which cannot be stored: {problem}")
    return base

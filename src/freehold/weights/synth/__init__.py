"""Checkpoints with a published model's exact shapes, formats and file layout, and random weights.

For measuring and testing where the model itself has not been downloaded. Owns the list of models, the order of writing
and what is left behind: everything or nothing. A new model is an entry of its family's MODELS; a new family is a file
like llama.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from freehold.errors import RequestError, ResourceError
from freehold.weights.synth import deepseek, glm, gpt_oss, llama, qwen
from freehold.weights.synth.containers import PlannedFile, gguf_file, json_file, safetensors_files
from freehold.weights.synth.published import Published
from freehold.weights.synth.tensors import for_gguf, for_safetensors, in_four_bits
from freehold.weights.synth.vocabulary import TokenizerFiles, gguf_keys, read_tokenizer

Container = Literal["safetensors", "gguf"]
Quant = Literal["q8_0", "q4_k"]
"""The format that a GGUF file has most matrices in. The numbers are whole ones of as many bits, in every container."""

SHAPES: Mapping[str, Published] = MappingProxyType(
    {**llama.MODELS, **gpt_oss.MODELS, **qwen.MODELS, **deepseek.MODELS, **glm.MODELS}
)
"""Every model that can be written, by its name in the catalogue."""

DISK_MARGIN = 64 << 20
"""Bytes left free on the disk."""

_FILE_TYPES: Mapping[Quant, int] = {"q8_0": 7, "q4_k": 14}
"""llama.cpp's numbers for what a file mostly holds."""


def write_checkpoint(
    published: Published,
    directory: Path,
    *,
    layers: int | None = None,
    seed: int = 0,
    container: Container = "safetensors",
    quant: Quant = "q8_0",
    tokenizer: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model into `directory`, which is absent or empty; returns the path to open, a directory or a .gguf file.

    `layers` keeps only the first ones. A tensor's numbers depend on `seed`, `quant` and its name only, so both
    containers and every number of layers hold the same. `tokenizer` is the real model's tokenizer.json or a directory
    with it. `progress` gets the bytes done and in all. Interrupted, nothing is left; killed, `directory` is as it was
    and DIRECTORY.incomplete remains beside it. Raises RequestError, ResourceError, and what `read_tokenizer` raises.
    """
    if layers is not None and not 1 <= layers <= published.n_layers:
        raise RequestError(f"{layers} layers were asked for; {published.title} has 1 to {published.n_layers}")
    if not 0 <= seed < 1 << 63:
        raise RequestError(f"the seed is {seed}; expected a whole number from 0 to 2^63 - 1")
    published = published.cut(layers or published.n_layers)
    target = _vacant(directory)
    files = read_tokenizer(tokenizer, published.config["vocab_size"]) if tokenizer is not None else None
    plan = plan_files(published, container, seed, files, quant)
    try:
        _require_space(published, plan, target)
        _write_all(plan, target, progress)
    except OSError as error:
        raise ResourceError(f"cannot write {directory}: {error.strerror or error}; nothing was left there") from error
    return directory / plan[0].name if container == "gguf" else directory


def plan_files(
    published: Published,
    container: Container,
    seed: int = 0,
    tokenizer: TokenizerFiles | None = None,
    quant: Quant = "q8_0",
) -> Sequence[PlannedFile]:
    """Every file of the checkpoint, its size known, its numbers not made yet."""
    note = f"The shapes of {published.title} with random weights, seed {seed}"
    tensors = published.tensors(published.config)
    if quant == "q4_k":
        tensors = map(in_four_bits, tensors)
    if container == "gguf":
        keys = {
            "general.architecture": published.architecture,
            "general.type": "model",
            "general.name": f"{published.title} (random weights)",
            "general.description": note,
            "general.license": published.licence.lower(),
            "general.file_type": _FILE_TYPES[quant],
            "general.quantization_version": 2,
            **published.gguf_keys(published.config),
            **gguf_keys(published, tokenizer),
        }
        stored = [part for tensor in tensors for part in for_gguf(tensor, seed)]
        return [gguf_file(f"{published.title}.gguf", keys, stored)]
    stored = [part for tensor in tensors for part in for_safetensors(tensor, seed)]
    return [
        *safetensors_files(stored, note),
        json_file("config.json", published.config),
        json_file("generation_config.json", published.generation_config),
        *(PlannedFile(name, (data,)) for name, data in (tokenizer.files if tokenizer else {}).items()),
    ]


def _vacant(directory: Path) -> Path:
    """Where a directory can be moved to; RequestError if something is there, or was being written there."""
    target = Path(os.path.realpath(directory))
    if os.path.lexists(target):
        if not target.is_dir() or any(target.iterdir()):
            raise RequestError(f"{directory} exists and is not an empty directory; name another, or delete it first")
        if os.path.ismount(target):
            raise RequestError(f"{directory} is the top of a disk; name a directory in it, such as {directory}/model")
    if os.path.lexists(_incomplete(target)):
        raise RequestError(
            f"{_incomplete(target)} exists: another run is writing there, or one was killed; delete it if none is"
        )
    return target


def _incomplete(target: Path) -> Path:
    return target.with_name(f"{target.name}.incomplete")


def _require_space(published: Published, plan: Sequence[PlannedFile], target: Path) -> None:
    parent = next(path for path in target.parents if path.exists())
    free = shutil.disk_usage(parent).free
    needed = sum(file.n_bytes for file in plan)
    if free < needed + DISK_MARGIN:
        raise ResourceError(
            f"{published.title} with {published.n_layers} layers takes {needed:,} bytes, and {DISK_MARGIN:,} are kept "
            f"free; the disk of {parent} has only {free:,}: make room, name another disk or ask for fewer layers"
        )


def _write_all(plan: Sequence[PlannedFile], target: Path, progress: Callable[[int, int], None] | None) -> None:
    total = sum(file.n_bytes for file in plan)
    work = _incomplete(target)
    work.parent.mkdir(parents=True, exist_ok=True)
    work.mkdir()
    try:
        done = 0
        for file in plan:
            with (work / file.name).open("xb") as stream:
                for piece in file.pieces():
                    stream.write(piece)
                    done += piece.nbytes
                    if progress is not None:
                        progress(done, total)
        if target.exists():
            target.rmdir()  # Windows does not rename onto a directory, even an empty one
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise

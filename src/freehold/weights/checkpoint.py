"""A model as its publisher ships it: weights, config and text files, from a directory or a single file, in one form.

Owns finding the parts and telling the user what is missing. Names and config keys are Hugging Face's, whatever the
container and layout (`gguf_tensors.py`, `gpt_oss_layout.py`, `fp8_layout.py`). Reads tensors lazily and knows nothing
of models: whether the tensors suffice and what the config means is decided there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol

from freehold.errors import ModelFileError, NotFoundError, UnsupportedError
from freehold.formats import QTensor
from freehold.weights import gpt_oss_config
from freehold.weights.fp8_layout import Fp8Tensors, holds_fp8, is_fp8
from freehold.weights.gguf_parts import GGUFParts, part_paths
from freehold.weights.gguf_tensors import GGUFTensors
from freehold.weights.gpt_oss_layout import GptOssTensors, is_original
from freehold.weights.quantization import check_quantization
from freehold.weights.quote import naming
from freehold.weights.refusals import refuse_known
from freehold.weights.safetensors import INDEX_NAME, SafetensorsShards
from freehold.weights.strict_json import read_limited, read_object

_MAX_CONFIG_BYTES = 4 << 20
_MAX_TOKENIZER_CONFIG_BYTES = 64 << 20  # some list every added token
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_ORIGINAL = "original"  # the directory of gpt-oss's second layout, inside that of the first


class TensorSource(Protocol):
    """Named tensors of one checkpoint, under Hugging Face's names."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def n_bytes(self) -> int: ...

    def get(self, name: str) -> QTensor: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def release(self, name: str) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint; a context manager. Tensors are read when asked for."""

    path: Path
    kind: Literal["safetensors", "gguf"]
    config: Mapping[str, Any]  # the keys of config.json, also for GGUF
    tensors: TensorSource
    generation_config: Mapping[str, Any]  # generation_config.json, or what a GGUF file has in its place, or empty
    tokenizer_json: Path | None
    gguf_metadata: Mapping[str, Any] | None  # as in the file; None for safetensors
    chat_template: str | None  # the default template's source
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)  # tokenizer_config.json, or empty
    tiktoken_model: Path | None = None  # ranks, of publishers who ship no tokenizer.json

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, in the order of the file, which is the order to read them in."""
        return self.tensors.names

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return self.tensors.n_bytes

    def get(self, name: str) -> QTensor:
        """A tensor as stored: a view of the mapped file, or a copy where rows had to be put back in order.

        Raises NotFoundError for an unknown name, UnsupportedError for a number format that Freehold does not read,
        ModelFileError for one that its config or its own scales contradict.
        """
        return self.tensors.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it. Raises NotFoundError for an unknown name."""
        return self.tensors.shape(name)

    def release(self, name: str) -> None:
        """Tell the system that the pages the tensor was read from are no longer needed. `get` still works."""
        self.tensors.release(name)

    def close(self) -> None:
        """Unmap the files. Tensors already taken stay valid."""
        self.tensors.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model: a directory with config.json and safetensors, a GGUF file, or a directory holding one.

    Any part of a GGUF model stands for all, which lie beside it. A directory with both kinds of weights is read as
    safetensors; one of gpt-oss with weights only in `original/` is read from there. Raises NotFoundError when there is
    nothing to open, ModelFileError for damaged or hostile files, UnsupportedError for what Freehold does not implement.
    """
    try:
        return _open(Path(path))
    except OSError as error:  # a directory on the way may not be searched, a name is too long, a disk fails
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error


def _open(path: Path) -> Checkpoint:
    if "\0" in str(path) or not path.exists():
        raise NotFoundError(f"{str(path)!r} does not exist; expected a model directory or a .gguf file")
    if not path.is_dir():
        return _open_file(path)
    suffixes = {entry.suffix for entry in path.iterdir()}
    if ".safetensors" in suffixes or (path / INDEX_NAME).exists():
        return _open_safetensors(path)
    if ".gguf" in suffixes:
        return _open_gguf(_only_gguf(path))
    if any((path / _ORIGINAL).glob("*.safetensors")):
        return _open_safetensors(path / _ORIGINAL)
    _refuse_directory(path, suffixes)


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors" or path.name in ("config.json", INDEX_NAME):
        raise NotFoundError(f"{path} is one file of a checkpoint; name its directory instead: {path.parent}")
    if path.suffix in _PICKLE_SUFFIXES:
        raise UnsupportedError(f"{path} is a pickle, which can run code when opened; get safetensors or GGUF instead")
    return _open_gguf(path)  # whatever its name: the reader checks the magic


def _only_gguf(directory: Path) -> Path:
    found = sorted(directory.glob("*.gguf"))
    if not set(found) <= set(part_paths(found[0])):
        names = ", ".join(path.name for path in found[:8])
        raise NotFoundError(f"{directory} holds {len(found)} GGUF files; name one of them: {names}")
    return found[0]


def _refuse_directory(path: Path, suffixes: set[str]) -> NoReturn:
    if suffixes & _PICKLE_SUFFIXES:
        raise UnsupportedError(
            f"{path} holds its weights as pickles, which can run code when opened; get the model as safetensors or GGUF"
        )
    what = "a config.json but no weights" if (path / "config.json").exists() else "no model"
    raise NotFoundError(f"{path} holds {what}; expected config.json and *.safetensors files, or one .gguf file")


def _open_safetensors(path: Path) -> Checkpoint:
    if not (path / "config.json").exists():
        raise NotFoundError(f"{path} holds safetensors but no config.json; fetch it from where the weights came from")
    config = read_object(path / "config.json", _MAX_CONFIG_BYTES)
    shards = SafetensorsShards(path)
    try:
        text_directories = [path]
        if is_original(shards.names):
            with naming(path):
                config = gpt_oss_config.from_original(config)
            text_directories.append(path.parent)
        generation = _find(text_directories, "generation_config.json")
        tokenizer_config = _tokenizer_config(text_directories)
        return Checkpoint(
            path=path,
            kind="safetensors",
            config=config,
            tensors=_tensors(shards, config),
            generation_config=read_object(generation, _MAX_CONFIG_BYTES) if generation else {},
            tokenizer_json=_find(text_directories, "tokenizer.json"),
            gguf_metadata=None,
            chat_template=_chat_template(text_directories, tokenizer_config),
            tokenizer_config=tokenizer_config,
            tiktoken_model=_find(text_directories, "tiktoken.model"),
        )
    except BaseException:
        shards.close()
        raise


def _tensors(shards: SafetensorsShards, config: Mapping[str, Any]) -> TensorSource:
    """The shards' tensors as if each matrix were stored by itself, whole."""
    if config.get("model_type") == "gpt_oss":
        return GptOssTensors(shards, config)
    with naming(shards.directory):
        refuse_known("model_type", config.get("model_type"))
        check_quantization(config)
        return Fp8Tensors(shards) if is_fp8(config) or holds_fp8(shards) else shards


def _find(directories: Sequence[Path], name: str) -> Path | None:
    """The file of that name in the first directory that has one."""
    return next((directory / name for directory in directories if (directory / name).exists()), None)


def _tokenizer_config(directories: Sequence[Path]) -> Mapping[str, Any]:
    found = _find(directories, "tokenizer_config.json")
    return read_object(found, _MAX_TOKENIZER_CONFIG_BYTES) if found else {}


def _chat_template(directories: Sequence[Path], tokenizer_config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, or the (default) template in tokenizer_config.json, or None."""
    if own_file := _find(directories, "chat_template.jinja"):
        try:
            return read_limited(own_file, _MAX_CONFIG_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{own_file} is not UTF-8: {error}") from error
    template = tokenizer_config.get("chat_template")
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, list) and all(_is_named_template(entry) for entry in template):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    where = _find(directories, "tokenizer_config.json")
    raise ModelFileError(f"{where}: chat_template is neither a string nor a list of {{name, template}}")


def _is_named_template(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))


def _open_gguf(path: Path) -> Checkpoint:
    file = GGUFParts(path)
    try:
        tensors = GGUFTensors(file)
        template = file.metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise ModelFileError(f"{file.path}: tokenizer.chat_template is not a string")
    except BaseException:
        file.close()
        raise
    return Checkpoint(
        path=file.path,
        kind="gguf",
        config=tensors.config,
        tensors=tensors,
        generation_config=_recommended(file.metadata),
        tokenizer_json=None,
        gguf_metadata=file.metadata,
        chat_template=template,
    )


def _recommended(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling that a GGUF file recommends, in the words of generation_config.json."""
    return {
        key: round(value, 6) if isinstance(value, float) else value  # stored as float32
        for word, key in _SAMPLING.items()
        if (value := metadata.get(f"general.sampling.{word}")) is not None
    }

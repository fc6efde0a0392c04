"""A model as its publisher ships it: weights, config and text files, from a directory or a single file, in one form.

Owns finding the parts and telling the user what is missing. Names and config keys are Hugging Face's, whatever the
container; the GGUF architectures that can be translated are listed in _GGUF_ARCHITECTURES. Reads tensors lazily and
knows nothing of models: whether the tensors suffice and what the config means is decided there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol

from freehold.errors import ModelFileError, NotFoundError, UnsupportedError
from freehold.formats import QTensor
from freehold.weights import gguf_llama
from freehold.weights.gguf import GGUFFile
from freehold.weights.quote import quote
from freehold.weights.safetensors import INDEX_NAME, SafetensorsShards
from freehold.weights.strict_json import read_limited, read_object

_MAX_CONFIG_BYTES = 4 << 20
_MAX_TOKENIZER_CONFIG_BYTES = 64 << 20  # some list every added token
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}
_GGUF_ARCHITECTURES = ("llama",)


class TensorSource(Protocol):
    """Named tensors of one checkpoint, under Hugging Face's names."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def n_bytes(self) -> int: ...

    def get(self, name: str) -> QTensor: ...

    def release(self, name: str) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint; a context manager. Tensors are read when asked for."""

    path: Path
    kind: Literal["safetensors", "gguf"]
    config: Mapping[str, Any]  # the keys of config.json, also for GGUF
    tensors: TensorSource
    generation_config: Mapping[str, Any]  # generation_config.json, or empty
    tokenizer_json: Path | None
    gguf_metadata: Mapping[str, Any] | None  # as in the file; None for safetensors
    chat_template: str | None  # the default template's source

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

        Raises NotFoundError for an unknown name, UnsupportedError for a number format that Freehold does not read.
        """
        return self.tensors.get(name)

    def release(self, name: str) -> None:
        """Tell the system that the tensor's source pages are no longer needed. `get` still works."""
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
    """Open a model: a directory with config.json and safetensors, a GGUF file, or a directory holding one GGUF file.

    A directory with both kinds of weights is read as safetensors. Raises NotFoundError when there is nothing to open,
    ModelFileError for damaged or hostile files, UnsupportedError for what Freehold does not implement.
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
    _refuse_directory(path, suffixes)


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors" or path.name in ("config.json", INDEX_NAME):
        raise NotFoundError(f"{path} is one file of a checkpoint; name its directory instead: {path.parent}")
    if path.suffix in _PICKLE_SUFFIXES:
        raise UnsupportedError(f"{path} is a pickle, which can run code when opened; get safetensors or GGUF instead")
    return _open_gguf(path)  # whatever its name: the reader checks the magic


def _only_gguf(directory: Path) -> Path:
    found = sorted(directory.glob("*.gguf"))
    if len(found) != 1:
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
    generation = path / "generation_config.json"
    tokenizer = path / "tokenizer.json"
    return Checkpoint(
        path=path,
        kind="safetensors",
        config=config,
        generation_config=read_object(generation, _MAX_CONFIG_BYTES) if generation.exists() else {},
        tokenizer_json=tokenizer if tokenizer.exists() else None,
        gguf_metadata=None,
        chat_template=_chat_template(path),
        tensors=SafetensorsShards(path),  # last: nothing after it can fail and leave it open
    )


def _chat_template(path: Path) -> str | None:
    """chat_template.jinja, or the (default) template in tokenizer_config.json, or None."""
    own_file, config_file = path / "chat_template.jinja", path / "tokenizer_config.json"
    if own_file.exists():
        try:
            return read_limited(own_file, _MAX_CONFIG_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{own_file} is not UTF-8: {error}") from error
    if not config_file.exists():
        return None
    template = read_object(config_file, _MAX_TOKENIZER_CONFIG_BYTES).get("chat_template")
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, list) and all(_is_named_template(entry) for entry in template):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    raise ModelFileError(f"{config_file}: chat_template is neither a string nor a list of {{name, template}}")


def _is_named_template(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))


def _open_gguf(path: Path) -> Checkpoint:
    file = GGUFFile(path)
    try:
        metadata = file.metadata
        _check_is_model(path, metadata)
        tensors = _GGUFTensors(file)
        template = metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise ModelFileError(f"{path}: tokenizer.chat_template is not a string")
    except BaseException:
        file.close()
        raise
    return Checkpoint(
        path=path,
        kind="gguf",
        config=tensors.config,
        generation_config={},
        tokenizer_json=None,
        gguf_metadata=metadata,
        chat_template=template,
        tensors=tensors,
    )


def _check_is_model(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse adapters, single parts of a split model, and architectures without a translation."""
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedError(f"{path} holds a GGUF of type {quote(kind)}; expected a model")
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedError(f"{path} is one part of a split GGUF; join the parts with `llama-gguf-split --merge`")
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelFileError(f"{path} has no general.architecture; expected the name of the model's family")
    if architecture not in _GGUF_ARCHITECTURES:
        supported = ", ".join(_GGUF_ARCHITECTURES)
        raise UnsupportedError(
            f"{path} is of architecture {quote(architecture)}; Freehold reads GGUF files of: {supported}"
        )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before the errors of the translation, which does not know it."""
    try:
        yield
    except (ModelFileError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from error


class _GGUFTensors:
    """A llama GGUF file under Hugging Face's names and row order."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        with _naming(file.path):
            if "token_embd.weight" not in file.names:
                raise ModelFileError("there is no tensor 'token_embd.weight', so this is no whole model")
            n_layers = gguf_llama.layer_count(file.metadata)
            self._gguf_names = gguf_llama.tensor_names(file.names, n_layers)
            vocab_rows = file.span("token_embd.weight").shape[0]
            self.config = gguf_llama.config_from_metadata(file.metadata, self._gguf_names, vocab_rows)
        self.names: tuple[str, ...] = tuple(self._gguf_names)
        self.n_bytes = file.n_bytes

    def get(self, name: str) -> QTensor:
        stored = self._file.get(self._gguf_name(name))
        with _naming(self._file.path):
            return gguf_llama.restore_row_order(name, stored, self.config)

    def release(self, name: str) -> None:
        self._file.release(self._gguf_name(name))

    def close(self) -> None:
        self._file.close()

    def _gguf_name(self, name: str) -> str:
        try:
            return self._gguf_names[name]
        except KeyError:
            raise NotFoundError(f"{self._file.path} has no tensor {name!r}") from None

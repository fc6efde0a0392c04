"""A GGUF model seen as Hugging Face's: config, tensor names and row order.

Owns the table of architectures: a module for each, or for some that are alike, always with the same three functions.
Knows neither what an architecture's words are nor how the file is laid out, nor in how many files a model comes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from freehold.errors import ModelFileError, NotFoundError, UnsupportedError
from freehold.formats import QTensor
from freehold.weights import gguf_deepseek, gguf_glm, gguf_gpt_oss, gguf_llama, gguf_qwen
from freehold.weights.gguf_parts import GGUFParts
from freehold.weights.quote import naming, quote
from freehold.weights.refusals import refusal


class Architecture(Protocol):
    """A module that translates one architecture. Its errors do not name the file."""

    def tensor_names(self, names: Iterable[str], metadata: Mapping[str, Any]) -> dict[str, str]:
        """Hugging Face name to GGUF name, in the given order."""
        ...

    def config_from_metadata(
        self, metadata: Mapping[str, Any], names: Collection[str], vocab_rows: int
    ) -> dict[str, Any]:
        """The config.json that this model would have. `names` are Hugging Face's."""
        ...

    def restore(self, name: str, tensor: QTensor, config: Mapping[str, Any]) -> QTensor:
        """Undo what the converter did to the numbers of a tensor."""
        ...


_ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt-oss": gguf_gpt_oss,
    **dict.fromkeys(gguf_llama.ARCHITECTURES, gguf_llama),
    **dict.fromkeys(gguf_qwen.ARCHITECTURES, gguf_qwen),
    gguf_deepseek.ARCHITECTURE: gguf_deepseek,
    gguf_glm.ARCHITECTURE: gguf_glm,
}


class GGUFTensors:
    """The tensors of an open GGUF model under Hugging Face's names. config: the keys of config.json."""

    def __init__(self, file: GGUFParts) -> None:
        """Raises ModelFileError or UnsupportedError; the file stays open, it is the caller's."""
        self._file = file
        with naming(file.path):
            self._architecture = _architecture(file.metadata)
            if "token_embd.weight" not in file.names:
                raise ModelFileError("there is no tensor 'token_embd.weight', so this is no whole model")
            self._gguf_names = self._architecture.tensor_names(file.names, file.metadata)
            vocab_rows = file.span("token_embd.weight").shape[0]
            self.config = self._architecture.config_from_metadata(file.metadata, self._gguf_names.keys(), vocab_rows)
        self.names: tuple[str, ...] = tuple(self._gguf_names)
        self.n_bytes = file.n_bytes

    def get(self, name: str) -> QTensor:
        """The tensor, a view of the mapped file unless rows had to be put back in order."""
        stored = self._file.get(self._gguf_name(name))
        with naming(self._file.path):
            return self._architecture.restore(name, stored, self.config)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._file.span(self._gguf_name(name)).shape

    def release(self, name: str) -> None:
        """Tell the system that the tensor's pages are no longer needed."""
        self._file.release(self._gguf_name(name))

    def close(self) -> None:
        """Unmap the files; tensors already taken stay valid."""
        self._file.close()

    def _gguf_name(self, name: str) -> str:
        try:
            return self._gguf_names[name]
        except KeyError:
            raise NotFoundError(f"{self._file.path} has no tensor {name!r}") from None


def _architecture(metadata: Mapping[str, Any]) -> Architecture:
    """The translation that a model needs; refuses adapters and unknown architectures."""
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedError(f"this is a GGUF of type {quote(kind)}; expected a model")
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelFileError("there is no general.architecture; expected the name of the model's family")
    if name not in _ARCHITECTURES:
        raise UnsupportedError(refusal("the architecture", name, _ARCHITECTURES))
    return _ARCHITECTURES[name]

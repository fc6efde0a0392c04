"""What the translations of GGUF's architectures share: metadata keys read with checks, tensor names by table.

Owns the rule that a key or tensor outside an architecture's tables is refused (UnsupportedError), never ignored, since
it may change the maths. Knows no architecture and nothing of how the file is laid out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from freehold.errors import ModelFileError, UnsupportedError
from freehold.weights.quote import quote

_LAYER = re.compile(r"blk\.(?P<layer>0|[1-9][0-9]{0,8})\.")
_TENSOR_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9][0-9]{0,8})\.)?(?P<module>[a-z_]+)\.(?P<kind>weight|bias)")

_TOKEN_IDS: Mapping[str, tuple[str, ...]] = {  # what ends a text, a turn and a message: Hugging Face lists all as eos
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id", "eot_token_id", "eom_token_id"),
    "pad_token_id": ("padding_token_id",),
}
COMMON_KEYS = frozenset({
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.freq_base", "rope.dimension_count",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
})  # fmt: skip
"""Keys that `Words.common_config` reads."""
YARN_BETAS = frozenset({"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"})
"""Keys that `Words.yarn_betas` reads."""
COMMON_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.finetuned": (True, False),  # a note about how the model was made
}
"""Keys that change the maths, unless they have one of these values."""
YARN_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
}
"""The same for architectures that may have YaRN."""


class Words:
    """The keys `<architecture>.*` of one file. Errors name the whole key."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata = metadata
        self.architecture = architecture

    def __contains__(self, key: str) -> bool:
        return self._name(key) in self._metadata

    def refuse_unknown(self, known: Collection[str], neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse keys that are neither `known` nor have one of their `neutral` values."""
        for name, value in self._metadata.items():
            key = name.removeprefix(self._name(""))
            if key == name or key in known:
                continue
            if key not in neutral:
                raise UnsupportedError(
                    f"the GGUF key {quote(name)} is not implemented for the {self.architecture} architecture"
                )
            if not any(type(value) is type(allowed) and value == allowed for allowed in neutral[key]):
                expected = " or ".join(map(repr, neutral[key]))
                raise UnsupportedError(f"the GGUF key {quote(name)} is {quote(value)}; Freehold implements {expected}")

    @property
    def n_layers(self) -> int:
        """Layers of the model itself; `block_count` also counts the MTP layers behind them, which predict further."""
        n_blocks, n_mtp = self.count("block_count"), self.count("nextn_predict_layers", 0, least=0)
        if n_mtp >= n_blocks:
            raise ModelFileError(
                f"{self._name('nextn_predict_layers')} is {n_mtp}; expected less than block_count, {n_blocks}"
            )
        return n_blocks - n_mtp

    def common_config(self, names: Collection[str], vocab_rows: int) -> dict[str, Any]:
        """The keys of config.json that decoders have whose heads are all of one kind. `names` are Hugging Face's."""
        config = self.decoder_config(names, vocab_rows)
        return config | {"head_dim": self._head_dim(config["hidden_size"], config["num_attention_heads"])}

    def decoder_config(self, names: Collection[str], vocab_rows: int) -> dict[str, Any]:
        """The keys of config.json that every decoder has. `names` are Hugging Face's."""
        heads = self.count("attention.head_count")
        config = {
            "hidden_size": self.count("embedding_length"),
            "intermediate_size": self.count("feed_forward_length"),
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv", heads),
            "max_position_embeddings": self.count("context_length"),
            "vocab_size": self.count("vocab_size", vocab_rows),
            "rms_norm_eps": self.number("attention.layer_norm_rms_epsilon"),
            "rope_theta": self.number("rope.freq_base", 10000.0),
            "rope_scaling": self._rope_scaling(),
            "tie_word_embeddings": "lm_head.weight" not in names,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in names,
        }
        return config | self._token_ids()

    def yarn_betas(self, fast: float = 32.0) -> dict[str, float]:
        """YaRN's two bounds, in rotations; `fast` is what its key means where it is absent."""
        return {
            "beta_fast": self.number("rope.scaling.yarn_beta_fast", fast),
            "beta_slow": self.number("rope.scaling.yarn_beta_slow", 1.0),
        }

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` to 2^31 - 1."""
        return self._whole_number(self._name(key), least=least, default=default)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        name = self._name(key)
        value = self._metadata.get(name, default)
        if value is None:
            raise ModelFileError(f"the GGUF key {name!r} is missing")
        if type(value) is not bool:
            raise ModelFileError(f"the GGUF key {name!r} is {quote(value)}; expected true or false")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive float32, as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
        name = self._name(key)
        value = self._metadata.get(name, default)
        if value is None:
            raise ModelFileError(f"the GGUF key {name!r} is missing")
        if type(value) is not float or not 0 < value < np.finfo(np.float32).max:
            raise ModelFileError(f"the GGUF key {name!r} is {quote(value)}; expected a positive number")
        return float(str(np.float32(value)))

    def _name(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _whole_number(self, name: str, least: int, default: int | None = None) -> int:
        value = self._metadata.get(name, default)
        if value is None:
            raise ModelFileError(f"the GGUF key {name!r} is missing")
        if type(value) is not int or not least <= value < 1 << 31:
            raise ModelFileError(f"the GGUF key {name!r} is {quote(value)}; expected a whole number >= {least}, < 2^31")
        return value

    def _head_dim(self, hidden_size: int, heads: int) -> int:
        head_dim = self.count("attention.key_length", hidden_size // heads or 1)
        if "attention.key_length" not in self and hidden_size % heads:
            raise ModelFileError(
                f"{self._name('embedding_length')} {hidden_size} is not a multiple of the {heads} attention heads"
            )
        for key in ("attention.value_length", "rope.dimension_count"):
            value = self.count(key, head_dim)
            if value != head_dim:
                raise UnsupportedError(
                    f"{self._name(key)} is {value}; Freehold implements only the head dimension, {head_dim}"
                )
        return head_dim

    def _rope_scaling(self) -> dict[str, Any] | None:
        """llama3 scaling has no key: it is the tensor rope_freqs.weight."""
        kind = self._metadata.get(self._name("rope.scaling.type"), "none")
        if kind == "none":
            return None
        if kind not in ("linear", "yarn"):
            name = self._name("rope.scaling.type")
            raise UnsupportedError(f"{name} is {quote(kind)}; Freehold implements none, linear and yarn")
        scaling: dict[str, Any] = {"rope_type": kind, "factor": self.number("rope.scaling.factor")}
        if "rope.scaling.original_context_length" in self:
            scaling["original_max_position_embeddings"] = self.count("rope.scaling.original_context_length")
        return scaling

    def _token_ids(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, keys in _TOKEN_IDS.items():
            full_keys = [key for key in map("tokenizer.ggml.{}".format, keys) if key in self._metadata]
            ids = list(dict.fromkeys(self._whole_number(key, least=0) for key in full_keys))
            if ids:
                found[name] = ids[0] if len(ids) == 1 else ids
        return found


def translate_names(
    names: Iterable[str],
    words: Words,
    modules: Mapping[str, str],
    layer_modules: Mapping[str, str],
    biases: tuple[str, ...] = ("",),
) -> dict[str, str]:
    """Hugging Face name to GGUF name, in the given order, by tables of module names; MTP layers are left out.

    A table's entry with an ending, like `x.bias`, gives that tensor's whole name. `biases` are the endings that other
    biases' names, Hugging Face's, may have. Raises UnsupportedError for a tensor the architecture does not have,
    ModelFileError for one of a layer too many.
    """
    n_layers, n_blocks = words.n_layers, words.count("block_count")
    result: dict[str, str] = {}
    for name in names:
        in_layer = _LAYER.match(name)
        layer = int(in_layer["layer"]) if in_layer else None
        if layer is not None and n_layers <= layer < n_blocks:
            continue
        ours = _translated(name, modules if layer is None else layer_modules, biases)
        if ours is None:
            raise UnsupportedError(
                f"the tensor {quote(name)} is not part of the {words.architecture} architecture in Freehold"
            )
        if layer is not None and layer >= n_blocks:
            raise ModelFileError(
                f"the tensor {quote(name)} belongs to layer {layer}, but {words.architecture}.block_count is {n_blocks}"
            )
        result[ours if layer is None else f"model.layers.{layer}.{ours}"] = name
    return result


def _translated(name: str, table: Mapping[str, str], biases: tuple[str, ...]) -> str | None:
    """Hugging Face's name without its layer; None if the table has none."""
    match = _TENSOR_NAME.fullmatch(name)
    if match is None:
        return None
    module, kind = match["module"], match["kind"]
    if whole := table.get(f"{module}.{kind}"):
        return whole
    if module not in table:
        return None
    ours = f"{table[module]}.{kind}"
    return ours if kind == "weight" or ours.endswith(biases) else None

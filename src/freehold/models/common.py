"""What every model family reads from a config: its keys, strictly, and rotary frequencies.

Knows no family and no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from freehold.core import Float32Array
from freehold.errors import ModelFileError, UnsupportedError
from freehold.kernels import Rope

T = TypeVar("T", int, float, bool, str)

_MATHS_FREE_NAMES = """
    architectures model_type torch_dtype dtype transformers_version _name_or_path auto_map use_cache bos_token_id
    eos_token_id pad_token_id unk_token_id initializer_range attention_dropout hidden_dropout chunk_size_feed_forward
    output_attentions output_hidden_states return_dict is_encoder_decoder is_llama_config quantization_config
    _attn_implementation attn_implementation pretraining_tp problem_type task_specific_params id2label label2id
    transformers.js_config tokenizer_class max_window_layers layer_types"""
_MATHS_FREE_KEYS = frozenset(_MATHS_FREE_NAMES.split())
"""Config keys that never change a forward pass, or that a family reads where it matters."""

ROPE_KINDS = ("default", "linear", "llama3", "yarn")
"""What a config can ask for under `rope_type`, in transformers' words."""


class Config:
    """A config.json read key by key; `finish` refuses what nobody read, because it may change the maths."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of `key` as `kind`; without a default the key is required. Raises ModelFileError."""
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            if default is None:
                raise ModelFileError(f"{self._where}: the config lacks {key!r}, which this architecture needs")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelFileError(f"{self._where}: config key {key!r} is {value!r}; expected {_KINDS[kind]}")
        return value

    def size(self, key: str, default: int | None = None, most: int = 1 << 24) -> int:
        """A count from 1 to `most`."""
        value = self.get(key, int, default)
        if not 1 <= value <= most:
            raise ModelFileError(f"{self._where}: config key {key!r} is {value}; expected 1 to {most:,}")
        return value

    def choices(self, key: str, allowed: Sequence[str], default: list[str]) -> list[str]:
        """A list of texts, each one of `allowed`."""
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, list) or not all(item in allowed for item in value):
            expected = ", ".join(map(repr, allowed))
            raise UnsupportedError(
                f"{self._where}: config key {key!r} is {_short(value)}; expected a list of {expected}"
            )
        return value

    def flags(self, key: str, default: list[bool]) -> list[bool]:
        """A list of zeros and ones."""
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, list) or not all(isinstance(item, int) and item in (0, 1) for item in value):
            raise ModelFileError(f"{self._where}: config key {key!r} is {_short(value)}; expected a list of 0 and 1")
        return [bool(item) for item in value]

    def ignore(self, key: str) -> None:
        """Accept `key` with any value: it concerns training, or what another key has switched off."""
        self._read.add(key)

    def section(self, *keys: str) -> Config | None:
        """The first of `keys` that holds a JSON object, or None."""
        self._read.update(keys)
        for key in keys:
            if isinstance(self._values.get(key), Mapping):
                return Config(self._values[key], f"{self._where}: {key}")
        return None

    def require(self, key: str, *allowed: object) -> None:
        """Refuse any value of `key` other than the first allowed one (also meant when it is absent) or the others."""
        self._read.add(key)
        value = self._values.get(key)
        if value is not None and value not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise UnsupportedError(
                f"{self._where}: config key {key!r} is {_short(value)}, which is not implemented (only {expected})"
            )

    def finish(self) -> None:
        """Refuse keys that were not read, unless they are switched off (null, false, 0, empty) or never matter."""
        for key, value in self._values.items():
            if key not in self._read and key not in _MATHS_FREE_KEYS and value not in (None, False, 0, "", [], {}):
                raise UnsupportedError(
                    f"{self._where}: config key {key!r} = {_short(value)} is not known to this architecture and may "
                    f"change its results; Freehold refuses to guess"
                )


_KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_context(config: Config) -> int:
    """The longest context in tokens: `max_position_embeddings`, or what YaRN stretches the original context to.

    The second is more where users add YaRN to a config by hand, as Qwen's publisher advises.
    """
    context = config.size("max_position_embeddings", most=1 << 30)
    scaling = config.section("rope_parameters", "rope_scaling")
    if scaling is None or scaling.get("rope_type", str, scaling.get("type", str, "default")) != "yarn":
        return context
    original = scaling.size("original_max_position_embeddings", most=1 << 30)
    return max(context, int(min(original * scaling.get("factor", float), 1 << 30)))


def read_rope(
    config: Config,
    dim: int,
    factors: Float32Array | None = None,
    *,
    interleaved: bool = False,
    partial: bool = False,
) -> Rope:
    """Rotary frequencies of the kinds "default", "linear", "llama3" and "yarn", for `dim` rotated dimensions.

    factors: [dim / 2] divisors stored in the file (GGUF's rope_freqs), which then replace the scaling section.
    interleaved: the family rotates pairs of neighbours. partial: it rotates a part of each head, and knows which.
    Source: the formulas of transformers' modeling_rope_utils.
    """
    parameters = config.section("rope_parameters", "rope_scaling")
    nested = parameters.get("rope_theta", float, 0.0) if parameters else 0.0
    theta = config.get("rope_theta", float, 0.0) or nested or 10000.0
    if not partial:
        config.require("partial_rotary_factor", 1.0)
    for key in ("rope_interleave", "rope_interleaved"):
        config.require(key, interleaved)
    if not (math.isfinite(theta) and theta > 0):
        raise ModelFileError(f"rope_theta is {theta}; expected a positive number")
    inverse = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    scale = 1.0
    if factors is not None:
        inverse = inverse / factors.astype(np.float64)
    elif parameters is not None:
        inverse, scale = _scaled(inverse, parameters, theta)
    if not (np.isfinite(inverse).all() and (inverse > 0).all()):
        raise ModelFileError("the rotary frequencies of this config are not positive numbers")
    return Rope(inverse, scale, interleaved)


def _scaled(
    inverse: npt.NDArray[np.float64], parameters: Config, theta: float
) -> tuple[npt.NDArray[np.float64], float]:
    """The scaled frequencies, and the factor of their cosines and sines."""
    kind = parameters.get("rope_type", str, parameters.get("type", str, "default"))
    parameters.get("rope_theta", float, 0.0)
    if kind == "default":
        parameters.finish()
        return inverse, 1.0
    factor = parameters.get("factor", float)
    if not factor > 0:
        raise ModelFileError(f"rope scaling has factor {factor}; expected a positive number")
    if kind == "linear":
        parameters.finish()
        return inverse / factor, 1.0
    if kind == "yarn":
        return _yarn(inverse, parameters, theta, factor)
    if kind != "llama3":
        raise UnsupportedError(f"rope scaling {kind!r} is not implemented; implemented are {', '.join(ROPE_KINDS)}")
    low, high = parameters.get("low_freq_factor", float), parameters.get("high_freq_factor", float)
    original = parameters.size("original_max_position_embeddings", most=1 << 30)
    parameters.finish()
    wavelength = 2 * math.pi / inverse
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)  # 0: long waves, slowed; 1: short, kept
    return (1 - smooth) * inverse / factor + smooth * inverse, 1.0


def _yarn(
    inverse: npt.NDArray[np.float64], parameters: Config, theta: float, factor: float
) -> tuple[npt.NDArray[np.float64], float]:
    """YaRN: frequencies that turn often within the original context are kept, slow ones stretched, with a ramp between.

    Cosines and sines grow by 0.1 ln(factor) + 1, or by the ratio of that for `mscale` to that for `mscale_all_dim`.
    """
    dim = 2 * len(inverse)
    original = parameters.size("original_max_position_embeddings", most=1 << 30)
    turns = parameters.get("beta_fast", float, 32.0), parameters.get("beta_slow", float, 1.0)
    truncate = parameters.get("truncate", bool, True)
    mscale, all_dim = parameters.get("mscale", float, 0.0), parameters.get("mscale_all_dim", float, 0.0)
    attention = parameters.get("attention_factor", float, 0.0)
    parameters.finish()
    if min(turns) <= 0 or factor < 1 or theta <= 1:
        raise ModelFileError(
            f"yarn has factor {factor}, beta {turns}, rope_theta {theta}; expected positive, >= 1, > 1"
        )
    low, high = (dim * math.log(original / (n * 2 * math.pi)) / (2 * math.log(theta)) for n in turns)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)

    def growth(m: float) -> float:
        return 0.1 * m * math.log(factor) + 1

    scale = attention or (growth(mscale) / growth(all_dim) if mscale and all_dim else growth(1.0))
    return (1 - ramp) * inverse + ramp * inverse / factor, scale

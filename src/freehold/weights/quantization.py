"""How a checkpoint in safetensors says that it was quantised, and the refusal of what Freehold does not read.

Owns the names of the methods. MXFP4 is gpt-oss's and is checked in `gpt_oss_config.py`; FP8 in blocks is checked in
`fp8_layout.py`. A checkpoint read without its scales would be numbers of no meaning, so nothing here is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freehold.errors import ModelFileError, UnsupportedError
from freehold.weights.quote import quote

_KEYS = ("quantization_config", "compression_config", "quantization")
_TITLES = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors, as llm-compressor writes it",
    "fbgemm_fp8": "FBGEMM's FP8, with a scale for each row",
    "modelopt": "NVIDIA's ModelOpt",
    "mxfp4": "MXFP4, which is read for gpt-oss",
    "torchao": "torchao",
}
_READ = "fp8"


def check_quantization(config: Mapping[str, Any]) -> None:
    """Refuse weights quantised by a method that is not read; FP8 passes. Not for gpt-oss. Errors name no file."""
    for key in _KEYS:
        settings = config.get(key)
        if settings is None or settings == {}:
            continue
        if not isinstance(settings, Mapping):
            raise ModelFileError(f"{key} of config.json is {quote(settings)}; expected an object")
        method = _method(key, settings)
        if key == "quantization_config" and method == _READ:
            continue
        title = _TITLES.get(method, quote(method)) if isinstance(method, str) else quote(method)
        raise UnsupportedError(
            f"the weights are quantised by {title} ({key} of config.json), which Freehold does not read; fetch the "
            f"publisher's own weights in bfloat16 or FP8, or the model as GGUF"
        )


def _method(key: str, settings: Mapping[str, Any]) -> Any:
    """The method's name; what writes none is told by its other keys."""
    if "quant_method" in settings:
        return settings["quant_method"]
    if key == "compression_config":
        return "compressed-tensors"
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return "MLX" if "bits" in settings else "a method it does not name"

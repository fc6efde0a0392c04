"""Models that people will try and that are not implemented: whose they are, what is missing, what is nearest.

Owns that table and the words of the refusal, so that config.json's model_type and GGUF's general.architecture get the
same answer. Which models are implemented, its callers know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from freehold.errors import UnsupportedError
from freehold.weights.quote import quote

_LINEAR = "linear attention"
_SPARSE = "sparse attention, whose keys an indexer picks"
_VISION = "a vision model's input"
_AUDIO = "input other than text"
_STATES = "layers with a recurrent state"
_FORM = "the form of its layers"

_DEEPSEEK = "DeepSeek V2, V3, R1 and V3.1"
_QWEN = "Qwen2.5, Qwen3 and Qwen3-MoE"
_GLM = "GLM-4.5 and 4.6"
_KIMI = "Kimi-K2"
_LLAMA = "Llama 3"
_MISTRAL = "Mistral"


@dataclass(frozen=True)
class _Known:
    """names: patterns over a model_type or architecture in lower case, without marks between its words."""

    names: str
    title: str
    missing: str = _FORM
    nearest: str = ""


_TABLE = (
    _Known("deepseekv32 deepseek32", "DeepSeek-V3.2", _SPARSE, _DEEPSEEK),
    _Known("deepseekv4* deepseek4*", "DeepSeek-V4", "compressed attention with hyper-connections", _DEEPSEEK),
    _Known("deepseekvl* deepseekocr* deepseek2ocr*", "a DeepSeek that sees", _VISION, _DEEPSEEK),
    _Known("deepseek", "DeepSeek-MoE, before V2", _FORM, _DEEPSEEK),
    _Known("kimilinear", "Kimi-Linear", _LINEAR, _KIMI),
    _Known("kimik25 kimik26 kimivl*", "a Kimi that sees", _VISION, _KIMI),
    _Known("kimik3", "Kimi-K3", _FORM, _KIMI),
    _Known("qwen3next", "Qwen3-Next", _LINEAR, _QWEN),
    _Known("qwen35*", "Qwen3.5", _LINEAR, _QWEN),
    _Known("qwen2moe", "Qwen2-MoE", "a gated shared expert", _QWEN),
    _Known("qwen2vl* qwen25vl* qwen3vl*", "a Qwen that sees", _VISION, _QWEN),
    _Known("qwen2audio* qwen25omni* qwen3omni*", "a Qwen that hears", _AUDIO, _QWEN),
    _Known("qwen", "the first Qwen", _FORM, _QWEN),
    _Known("glmmoedsa glmdsa", "GLM-5", _SPARSE, _GLM),
    _Known("glm4v* glm46v*", "a GLM that sees", _VISION, _GLM),
    _Known("glm4moelite", "GLM-4.7-Flash", _FORM, _GLM),
    _Known("glm glm4 chatglm*", "a GLM before 4.5", _FORM, _GLM),
    _Known("llama4*", "Llama 4", "attention in chunks", _LLAMA),
    _Known("mllama", "Llama 3.2 Vision", _VISION, _LLAMA),
    _Known("llava* pixtral mistral3 mistral4", "a model that sees", _VISION, _MISTRAL),
    _Known("mixtral", "Mixtral", "its kind of experts", _MISTRAL),
    _Known("minimax minimaxtext01 minimaxm1", "MiniMax", _LINEAR),
    _Known("minimaxm2*", "MiniMax-M2"),
    _Known("gemma*", "Gemma"),
    _Known("phi*", "Phi"),
    _Known("gptneox gptj gpt2 bloom mpt opt falcon", "an older model"),
    _Known("mamba* rwkv* jamba falconh1 granitehybrid granitemoehybrid nemotronh* lfm2*", "a recurrent model", _STATES),
    _Known("bert *bert roberta t5* xlmroberta", "an encoder", "a use, since it writes no text"),
)


def refusal(word: str, name: object, implemented: Iterable[str]) -> str:
    """Why a model is not loaded. `word` is what its file calls its kind, `name` the kind, `implemented` the others."""
    return f"{_said(word, name, _known(name))}. Implemented: {', '.join(implemented)}"


def refuse_known(word: str, name: object) -> None:
    """Raise UnsupportedError for a kind of the table, before anything else about its files can be at fault."""
    known = _known(name)
    if known is not None:
        raise UnsupportedError(_said(word, name, known))


def _said(word: str, name: object, known: _Known | None) -> str:
    said = f"{word} {quote(name)} is not implemented"
    if known is None:
        return said
    nearest = f"; of its kin it runs {known.nearest}" if known.nearest else ""
    return f"{said}: this is {known.title}, for which Freehold lacks {known.missing}{nearest}"


def _known(name: object) -> _Known | None:
    if not isinstance(name, str):
        return None
    plain = re.sub(r"[-_. ]", "", name.lower())
    return next((row for row in _TABLE if any(fnmatchcase(plain, pattern) for pattern in row.names.split())), None)

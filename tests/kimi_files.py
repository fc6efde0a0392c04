"""A small Kimi: tiktoken.model and tokenizer_config.json as its publisher lays them out, the ranks made up."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = [
    *["th", "the", "ing", "ion", "he", "in", " a", " the", "ha", "hal", "hall", "ll", "allo", "al", "lo", "rld", "don"],
    *["hello", "Hello", " World", "ab", "abc", "bc", "cd", "bcd", "aa", "aaa", "aaaa", "12", "123", "23", "00", "'t"],
    *["n't", "it's", "..", "...", "==", "!=", " (", ") ", "\n\n", "\r\n", "    ", "\t", "\t\t", "  ", "Ünï", "ŷ", "½"],
    *[
        "你好",
        "世界",
        "中文",
        "北",
        "京",
        "北京",
        "市",
        "語",
        "日本",
        "の",
        "かな",
        "カナ",
        "привет",
        "мир",
        "👋",
        "👋🏽",
        "é",
    ],
]
CONTROLS = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "[EOT]",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    254: "[UNK]",
    255: "[PAD]",
}
"""As far behind the ranks as Kimi-K2's are behind its 163,584."""
N_CONTROLS = 256


def made_up_ranks(words: Sequence[str] = WORDS) -> dict[bytes, int]:
    """Bytes, then the prefixes of every word, shortest first, and some halves: not every token is two others."""
    tokens = dict.fromkeys(bytes([byte]) for byte in range(256))
    spelled = [word.encode() for word in words if word]
    tokens |= dict.fromkeys(word[:n] for n in range(2, 12) for word in spelled if n < len(word))
    tokens |= dict.fromkeys(word[-2:] for word in spelled if len(word) > 2)
    tokens |= dict.fromkeys(spelled)
    return {token: rank for rank, token in enumerate(tokens)}


def write_ranks(path: Path, ranks: dict[bytes, int]) -> None:
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
    path.write_bytes(b"\n".join(lines) + b"\n")


def tokenizer_config(n_ranks: int, **changes: Any) -> dict[str, Any]:
    quiet = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(n_ranks + at): {"content": text, **quiet, "special": "tool_call" not in text}
        for at, text in CONTROLS.items()
    }
    return {
        "added_tokens_decoder": decoder,
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "tokenizer_class": "TikTokenTokenizer",
        **changes,
    }


def write_kimi(directory: Path, **changes: Any) -> dict[bytes, int]:
    """Both files; gives the ranks."""
    ranks = made_up_ranks()
    write_ranks(directory / "tiktoken.model", ranks)
    text = json.dumps(tokenizer_config(len(ranks), **changes))
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return ranks

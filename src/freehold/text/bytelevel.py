"""The byte-level alphabet of GPT-2 and the pre-tokenisers that GGUF files name.

Owns two tables: which printable character stands for which byte, and how text is cut before BPE under each name. A name
is listed only where its stages are known from the publisher's own tokenizer.json or code; any other is refused, never
guessed, because a wrong cut gives plausible but different ids.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from freehold.errors import UnsupportedError

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer


@dataclass(frozen=True)
class Cut:
    """How one family cuts text: regex stages in order (each isolates its matches), or the GPT-2 regex after them.

    `nfc` normalises first; `ignore_merges` takes a piece that is itself a token whole; `add_bos` holds where a file is
    silent.
    """

    stages: tuple[str, ...] = ()
    gpt2_regex: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


def _words(digits: str) -> str:
    """The pattern that Llama 3 and Qwen share; they differ in how many digits stay together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _escaped(code_point: re.Match[str]) -> str:
    return rf"\x{{{code_point[0]}}}"


_GPT2 = Cut(gpt2_regex=True)
_SMOLLM = Cut((r"\p{N}",), gpt2_regex=True)
_LLAMA3 = Cut((_words(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_GLM4 = Cut((_words(r"\p{N}{1,3}"),), ignore_merges=True)
_QWEN2 = Cut((_words(r"\p{N}"),), nfc=True)
_BEFORE_A_WORD, _CONTRACTION = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = Cut(  # a word ends where lower case turns to upper
    (
        f"{_BEFORE_A_WORD}{_UPPER}*{_LOWER}+{_CONTRACTION}|{_BEFORE_A_WORD}{_UPPER}+{_LOWER}*{_CONTRACTION}|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    ignore_merges=True,
)
_NO_HAN = "&&[^\\p{Han}]]"
_KIMI = Cut(  # as o200k, with Chinese characters apart from letters
    (
        r"[\p{Han}]+|"
        f"{_BEFORE_A_WORD}{_UPPER[:-1]}{_NO_HAN}*{_LOWER[:-1]}{_NO_HAN}+{_CONTRACTION}|"
        f"{_BEFORE_A_WORD}{_UPPER[:-1]}{_NO_HAN}+{_LOWER[:-1]}{_NO_HAN}*{_CONTRACTION}|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    ignore_merges=True,
)
_CASED = (  # letters with case, of most scripts and of an older Unicode, as code points
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1 "
    "3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 "
    "1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe "
    "1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 "
    "2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 "
    "a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a "
    "10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"
)
_DEEPSEEK2 = Cut(
    (
        r"[\r\n]",
        rf"\s?[{re.sub('[0-9a-f]+', _escaped, _CASED).replace(' ', '')}]+",
        r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
        r"\s+$",
        r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+",
        r"\p{N}",
    )
)
_DEEPSEEK3 = Cut(
    (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
        r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    )
)

CUTS: dict[str, Cut] = {
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "deepseek-llm": _DEEPSEEK2,
    "deepseek-v3": _DEEPSEEK3,
    "glm4": _GLM4,
    "chatglm-bpe": _GLM4,
    "gpt-4o": _O200K,
    "kimi-k2": _KIMI,
}
"""GGUF's `tokenizer.ggml.pre` names. "default" is absent on purpose: a converter writes it when it did not know."""


def cut_named(name: str) -> Cut:
    """The cut of a GGUF pre-tokeniser name. Raises UnsupportedError for a name that is not surely known."""
    if name not in CUTS:
        raise UnsupportedError(
            f"tokenizer.ggml.pre is {name[:80]!r}; known are {', '.join(sorted(CUTS))}. Text would be cut "
            f"wrongly, so use the publisher's safetensors with its tokenizer.json instead"
        )
    return CUTS[name]


def pre_tokenizer(cut: Cut) -> PreTokenizer:
    """The `tokenizers` form of a cut."""
    # Imported here: loading a model needs it, `freehold --help` does not.
    from tokenizers import Regex, pre_tokenizers

    stages: list[PreTokenizer] = [pre_tokenizers.Split(Regex(stage), "isolated") for stage in cut.stages]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.gpt2_regex)
    return pre_tokenizers.Sequence([*stages, byte_level])


def _alphabet() -> dict[str, int]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF: dict[str, int] = _alphabet()
"""The byte each character of the alphabet stands for: printable Latin-1 for itself, U+0100 onwards for the other 68."""


def text_bytes(token: str) -> bytes:
    """The bytes a vocabulary entry stands for; one outside the alphabet (an unused slot) stands for its own UTF-8."""
    try:
        return bytes([BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()

"""The byte-level alphabet of GPT-2 and the pre-tokenisers that GGUF files name.

Owns two tables: which printable character stands for which byte, and how text is cut before BPE under each name. A name
is listed only where its stages are known from the publisher's own tokenizer.json; any other is refused, never guessed,
because a wrong cut gives plausible but different ids.
"""

from __future__ import annotations

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


_GPT2 = Cut(gpt2_regex=True)
_SMOLLM = Cut((r"\p{N}",), gpt2_regex=True)
_LLAMA3 = Cut((_words(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
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
    "deepseek-v3": _DEEPSEEK3,
    "gpt-4o": _O200K,
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

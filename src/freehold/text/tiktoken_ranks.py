"""Kimi's tokenizer from the files that its repositories ship instead of a tokenizer.json: ranks and control tokens.

Owns reading tiktoken.model (a line per token: base64 of its bytes, a blank, its rank) and putting the `tokenizers`
form together. The publisher's Python code beside it is never run; the one thing taken from it, how text is cut, is in
bytelevel.py under "kimi-k2". That code also cuts texts every 400,000 characters and runs of 25,000 characters without
a blank (or of blanks), which spares its library and is not done here. Knows no messages and no models.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from freehold.errors import ModelFileError, UnsupportedError
from freehold.text.bytelevel import BYTE_OF, cut_named, pre_tokenizer

if TYPE_CHECKING:
    import tokenizers

MAX_BYTES = 16 * 2**20
"""Kimi's file has 2.8 MB."""
MAX_TOKEN_BYTES = 512
"""Real tokens have at most 128; merges are found in time proportional to the square of it."""

_CODE = "tokenization_kimi."
_N_CONTROLS = 258  # ids behind the ranks; those that the config does not name, the publisher's code does
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,9})")
_TEXT_OF = {byte: char for char, byte in BYTE_OF.items()}  # for str.translate of bytes read as Latin-1


def kimi_tokenizer(ranks: Path, tokenizer_config: Mapping[str, Any], n_ids: int | None) -> tokenizers.Tokenizer:
    """The tokenizer of `ranks` (a tiktoken.model) with the control tokens of tokenizer_config.json.

    n_ids: of the model, if known; ids from there on get no text. Raises UnsupportedError for anybody else's
    tiktoken.model, because how text is cut stands in code and in no file, and ModelFileError for malformed files.
    """
    # Imported here: loading a model needs it, `freehold --help` does not.
    from tokenizers import AddedToken, Tokenizer, decoders, models

    _check_publisher(ranks, tokenizer_config)
    tokens = read_ranks(ranks)
    texts = {token: token.decode("latin-1").translate(_TEXT_OF) for token in tokens}
    vocab = {text: rank for rank, text in enumerate(texts.values())}
    cut = cut_named("kimi-k2")
    full = Tokenizer(models.BPE(vocab, _merges(texts), ignore_merges=cut.ignore_merges))
    full.pre_tokenizer = pre_tokenizer(cut)
    full.decoder = decoders.ByteLevel()
    controls = _controls(tokenizer_config, len(tokens), n_ids)
    full.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in controls])
    for id, (text, _) in enumerate(controls, len(tokens)):
        if full.token_to_id(text) != id:
            _fail(f"tokenizer_config.json names token {id} {text[:80]!r}, as another one is", "each text once")
    return full


def read_ranks(path: Path) -> list[bytes]:
    """The tokens of a tiktoken.model, each at its rank. Raises ModelFileError unless every rank is there once."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        _fail(f"{path} is larger than {MAX_BYTES:,} bytes", "a tiktoken.model, which is far smaller")
    lines = data.splitlines()
    by_rank = dict(_parsed(path, lines))
    tokens = [by_rank[rank] for rank in range(len(lines)) if rank in by_rank]
    if len(tokens) != len(lines):
        missing = next(rank for rank in range(len(lines)) if rank not in by_rank)
        _fail(f"{path} has {len(lines)} lines and none of rank {missing}", "every rank from 0 on once")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        double = next(token for rank, token in enumerate(tokens) if ranks[token] != rank)
        _fail(f"{path} holds the token {double[:40]!r} twice", "each token once")
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        _fail(f"{path} has no token for the byte {lacking[0]}", "one for each byte")
    return tokens


def _parsed(path: Path, lines: Iterable[bytes]) -> Iterable[tuple[int, bytes]]:
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        try:
            token = binascii.a2b_base64(found[1]) if found else b""
        except ValueError:  # bits or padding are missing
            token = b""
        if found is None or not 0 < len(token) <= MAX_TOKEN_BYTES:
            _fail(
                f"{path}: line {number} is {line[:60]!r}",
                f"base64 of 1 to {MAX_TOKEN_BYTES} bytes, a blank and a rank",
            )
        yield int(found[2]), token


def _merges(texts: Mapping[bytes, str]) -> list[tuple[str, str]]:
    """Every pair of tokens that joins to a token, in the order of the tokens they join to, as the library's texts.

    tiktoken joins any two neighbours whose bytes are a token, the lowest rank first. Whatever stands around them, two
    neighbours came about as they would with nothing around, so a token is only ever made of one pair; listing the
    others does no harm, and finding out which is which would take longer.
    """
    return [
        (texts[left], texts[right])
        for token in texts
        for at in range(1, len(token))
        if (left := token[:at]) in texts and (right := token[at:]) in texts
    ]


def _check_publisher(ranks: Path, tokenizer_config: Mapping[str, Any]) -> None:
    auto_map = tokenizer_config.get("auto_map")
    code = auto_map.get("AutoTokenizer") if isinstance(auto_map, Mapping) else None
    code = code[0] if isinstance(code, list) and code else code
    if not isinstance(code, str) or _CODE not in code:
        named = "no code" if code is None else f"{str(code)[:80]!r}"
        raise UnsupportedError(
            f"{ranks}: the model has ranks of tiktoken and no tokenizer.json, and how text is cut into words stands "
            f"only in its publisher's code ({named} is named), which Freehold does not run; Kimi's is known. Get the "
            f"model with a tokenizer.json, or as GGUF"
        )


def _controls(tokenizer_config: Mapping[str, Any], first: int, n_ids: int | None) -> list[tuple[str, bool]]:
    """Text, and whether it is special, of every id from `first` on."""
    decoder = tokenizer_config.get("added_tokens_decoder", {})
    if not isinstance(decoder, Mapping):
        _fail(f"tokenizer_config.json: added_tokens_decoder is a {type(decoder).__name__}", "an object")
    end = first + _N_CONTROLS if n_ids is None else min(first + _N_CONTROLS, n_ids)
    controls = {id: (f"<|reserved_token_{id}|>", True) for id in range(first, end)}
    for key, token in decoder.items():
        text = token.get("content") if isinstance(token, Mapping) else None
        if not isinstance(text, str) or not text:
            _fail(f"tokenizer_config.json: added token {key[:40]} is {str(token)[:60]!r}", "an object with its content")
        if not re.fullmatch("0|[1-9][0-9]{0,8}", key) or int(key) not in controls:
            _fail(
                f"tokenizer_config.json: the added token {text[:60]!r} has the id {key[:40]!r}",
                f"{first} to {end - 1}, the ids behind the ranks",
            )
        controls[int(key)] = text, token.get("special") is not False
    return [controls[id] for id in sorted(controls)]


def _fail(found: str, expected: str) -> NoReturn:
    raise ModelFileError(f"{found}; expected {expected}")

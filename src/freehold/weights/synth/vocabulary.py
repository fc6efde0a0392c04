"""The tokenizer that goes with random weights: the real model's, from a local file, or a placeholder.

Owns the check that a tokenizer.json fits the model, and its translation to GGUF's keys. Never encodes text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.errors import ModelFileError, UnsupportedError
from freehold.weights.quote import quote
from freehold.weights.strict_json import parse_object, read_limited
from freehold.weights.synth.published import Published

_TOKENIZER, _TOKENIZER_CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_MAX_BYTES = 256 << 20
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # GGUF's token types


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer.json and what lies beside it. texts and types: GGUF's, of every id of the model."""

    files: Mapping[str, bytes]
    texts: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]  # two tokens with a blank between them


def read_tokenizer(path: Path, vocab_size: int) -> TokenizerFiles:
    """Read `path`, a tokenizer.json or a directory that holds one, for a model of vocab_size ids.

    A directory's tokenizer_config.json and chat_template.jinja are taken along. Raises NotFoundError; ModelFileError
    for a damaged one or one of another model; UnsupportedError for a kind that is not byte-level BPE.
    """
    directory = path if path.is_dir() else None
    source = path / _TOKENIZER if directory else path
    files = {_TOKENIZER: read_limited(source, _MAX_BYTES)}
    for name in (_TOKENIZER_CONFIG, _TEMPLATE):
        if directory and (directory / name).exists():
            files[name] = read_limited(directory / name, _MAX_BYTES)
    state = parse_object(files[_TOKENIZER], str(source))
    model = state.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise UnsupportedError(f"{source} is a tokenizer of type {quote(kind)}; expected byte-level BPE")
    texts, types = _tokens(source, model.get("vocab"), state.get("added_tokens", []), vocab_size)
    merges = _merges(source, model.get("merges"))
    _require_utf8(source, [*texts, *merges])
    return TokenizerFiles(files, texts, types, merges)


def gguf_keys(published: Published, tokenizer: TokenizerFiles | None) -> dict[str, Any]:
    """The tokenizer.* keys: of `tokenizer`, or of a placeholder in which only bytes and control tokens have a text."""
    found = tokenizer or _placeholder(published)
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": published.pre_tokenizer,
        "tokenizer.ggml.tokens": list(found.texts),
        "tokenizer.ggml.token_type": list(found.types),
        "tokenizer.ggml.merges": list(found.merges),
    }
    ids = {**published.config, **published.generation_config}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        value = ids.get(f"{name}_token_id")
        if value is not None:
            keys[f"tokenizer.ggml.{key}_token_id"] = value[0] if isinstance(value, list) else value
    template = _chat_template(found.files)
    return keys if template is None else {**keys, "tokenizer.chat_template": template}


def _tokens(source: Path, vocab: Any, added: Any, vocab_size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and type of every id of the model; ids that the tokenizer does not have are unused."""
    if not isinstance(vocab, dict) or not isinstance(added, list) or not all(map(_is_added_token, added)):
        raise ModelFileError(f"{source} lacks a vocab object or a list of added tokens with id and content")
    for id in (*vocab.values(), *(token["id"] for token in added)):
        if type(id) is not int or not 0 <= id < vocab_size:
            raise ModelFileError(
                f"{source} has the token id {quote(id)}; the model has ids from 0 to {vocab_size - 1}: it is another "
                "model's tokenizer"
            )
    found = {id: (text, _NORMAL) for text, id in vocab.items()}
    if len(found) != len(vocab):
        raise ModelFileError(f"{source} gives one id to two tokens")
    for token in added:
        found[token["id"]] = (token["content"], _CONTROL if token.get("special") else _USER_DEFINED)
    texts, types = _fill(found, vocab_size)
    if len(set(texts)) != len(texts):
        raise ModelFileError(f"{source} gives one text to two ids")
    return texts, types


def _fill(tokens: Mapping[int, tuple[str, int]], vocab_size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    every = [tokens.get(id, (f"[PAD{id}]", _UNUSED)) for id in range(vocab_size)]
    return tuple(text for text, _ in every), tuple(kind for _, kind in every)


def _is_added_token(token: Any) -> bool:
    return isinstance(token, dict) and "id" in token and isinstance(token.get("content"), str)


def _merges(source: Path, merges: Any) -> tuple[str, ...]:
    """Older files have "a b", newer ones ["a", "b"]."""
    if not isinstance(merges, list):
        raise ModelFileError(f"{source} has no list of merges")
    joined = [" ".join(map(str, merge)) if isinstance(merge, list) else merge for merge in merges]
    for merge in joined:
        if not isinstance(merge, str) or merge.count(" ") != 1:
            raise ModelFileError(f"{source} has the merge {quote(merge)}; expected two tokens without blanks")
    return tuple(joined)


def _chat_template(files: Mapping[str, bytes]) -> str | None:
    if _TEMPLATE in files:
        try:
            return files[_TEMPLATE].decode()
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{_TEMPLATE} is not UTF-8: {error}") from error
    template = parse_object(files.get(_TOKENIZER_CONFIG, b"{}"), _TOKENIZER_CONFIG).get("chat_template")
    if template is not None and not isinstance(template, str):
        raise UnsupportedError(f"{_TOKENIZER_CONFIG} has several chat templates; put the one to use into {_TEMPLATE}")
    _require_utf8(_TOKENIZER_CONFIG, [template or ""])
    return template


def _require_utf8(source: Path | str, texts: Sequence[str]) -> None:
    """JSON can spell halves of surrogate pairs, which no GGUF string can hold."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise ModelFileError(f"{source} holds a text that is not Unicode: {error.reason}") from error


def _placeholder(published: Published) -> TokenizerFiles:
    """Every byte, the control tokens, and one merge, since readers expect some; all other ids are unused."""
    vocab_size = published.config["vocab_size"]
    tokens = {id: (text, _CONTROL) for id, text in published.control_tokens.items()}
    free = (id for id in range(vocab_size) if id not in published.control_tokens)
    alphabet = _byte_alphabet()
    blank = alphabet[ord(" ")]
    for text in (*alphabet, blank + blank):
        tokens[next(free)] = (text, _NORMAL)
    return TokenizerFiles({}, *_fill(tokens, vocab_size), merges=(f"{blank} {blank}",))


def _byte_alphabet() -> list[str]:
    """GPT-2's character for each byte: printable Latin-1 for itself, U+0100 onwards for the others, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]

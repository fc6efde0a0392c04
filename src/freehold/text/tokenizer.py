"""Text to token ids and back, byte for byte.

Owns the Tokenizer, made from a tokenizer.json, GGUF metadata or Kimi's ranks, and the decoder for ids one at a time.
Content and control are kept apart: `encode` gives a control token only where `special=True` asks for it. The BPE itself
is the `tokenizers` library's. Knows nothing of messages, templates, models or how files are read.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from freehold.errors import ModelFileError, RequestError, UnsupportedError
from freehold.text.bytelevel import cut_named, pre_tokenizer, text_bytes
from freehold.text.literals import Literals
from freehold.text.tiktoken_ranks import kimi_tokenizer

if TYPE_CHECKING:
    import tokenizers

MAX_JSON_BYTES = 256 * 2**20
MAX_CONTROL_CHARS = 256
"""Longest control token accepted; real ones stay under 50. It bounds the search for them in content."""

_CONTROL, _USER_DEFINED = 3, 4  # of GGUF's token types; the others are ordinary vocabulary
_TAG = re.compile(r"</?[a-z][a-z_]*>")


class Tokenizer:
    """A byte-level BPE tokenizer; thread-safe. Made by `load_tokenizer`.

    vocab_size: ids from 0 to vocab_size - 1 are accepted; a model may have more ids than its tokenizer has texts.
    special_ids: control token text -> id, markers like <think> that publishers do not flag as special included.
    tags: those of them, like <think>, that a template may look for in an assistant's own text.
    bos_id, eos_id: the primary ones, or None. eos_ids: every id the files call an end.
    add_bos: whether raw prompts start with bos_id.
    """

    def __init__(
        self, full: tokenizers.Tokenizer, *, vocab_size: int, bos_id: int | None, eos_ids: Sequence[int], add_bos: bool
    ) -> None:
        from tokenizers import Tokenizer as Library

        added = {token.content: (id, token.special) for id, token in full.get_added_tokens_decoder().items()}
        # One character cannot be told from the text it is; runs of blanks are text that a publisher gave an id.
        control = {t: id for t, (id, special) in added.items() if len(t) > 1 and (special or not t.isspace())}
        if too_long := [text for text in control if len(text) > MAX_CONTROL_CHARS]:
            _fail(f"the control token {too_long[0][:40]!r}... is too long", f"at most {MAX_CONTROL_CHARS} characters")
        self.vocab_size = max(vocab_size, full.get_vocab_size(), *(id + 1 for id, _ in added.values()), 0)
        self.special_ids: Mapping[str, int] = control
        self.tags = frozenset(t for t in control if not added[t][1] and _TAG.fullmatch(t))
        self.controls = Literals(control)
        self.bos_id, self.eos_id = bos_id, eos_ids[0] if eos_ids else None
        self.eos_ids = frozenset(eos_ids)
        self.add_bos = add_bos and bos_id is not None
        self._full = full
        # The same BPE without any added token: no text can reach a control token through it.
        self._plain = Library(full.model)
        self._plain.normalizer, self._plain.pre_tokenizer = full.normalizer, full.pre_tokenizer
        self._blanks = Literals({t: id for t, (id, special) in added.items() if t.isspace() and not special})
        self._control_ids = frozenset(control.values())
        self._added_text = {id: text for text, (id, _) in added.items()}
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`; no BOS is added. Without `special`, a control token's text is text like any other."""
        try:
            if special:
                return self._full.encode(text, add_special_tokens=False).ids
            ids = self._encode_text(text)
        except (TypeError, UnicodeEncodeError) as error:  # whichever the library raises for text that is not UTF-8
            raise RequestError(f"cannot encode {text[:40]!r}...; expected text without lone surrogates") from error
        return ids if self._control_ids.isdisjoint(ids) else self._encode_apart(text)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of `ids`; bytes that form no character become U+FFFD. `skip_special` leaves out control tokens."""
        kept = (id for id in ids if not (skip_special and id in self._control_ids))
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes of one token, which may be part of a character; an id without a text has none."""
        found = self._bytes.get(id)
        if found is None:
            if not 0 <= id < self.vocab_size:
                raise RequestError(f"token id {id} is outside the vocabulary; expected 0 to {self.vocab_size - 1}")
            text = self._added_text.get(id)
            found = text_bytes(self._full.id_to_token(id) or "") if text is None else text.encode()
            self._bytes[id] = found
        return found

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece, id in self._blanks.split(text):
            ids += self._plain.encode(piece, add_special_tokens=False).ids if id is None else [id]
        return ids

    def _encode_apart(self, text: str) -> list[int]:
        """For a vocabulary whose merges spell out a control token: cut its text in two before encoding."""
        ids: list[int] = []
        for piece, id in self.controls.split(text):
            for part in (piece,) if id is None else (piece[:1], piece[1:]):
                ids += self._encode_text(part)
        if not self._control_ids.isdisjoint(ids):
            _fail("ordinary text is encoded as a control token", "control tokens that merges cannot reach")
        return ids


class IncrementalDecoder:
    """Ids to text, one at a time: everything pushed and flushed joins to what `Tokenizer.decode` gives for the whole.

    At most 3 bytes, an unfinished character, are held back.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that token `id` completes, perhaps none."""
        return self._utf8.decode(self._token_bytes(id))

    def flush(self) -> str:
        """End of the ids: U+FFFD if a character was left unfinished. The decoder can then be used afresh."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def load_tokenizer(
    tokenizer_json: Path | None,
    gguf_metadata: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    *,
    tokenizer_config: Mapping[str, Any] = MappingProxyType({}),
    tiktoken_model: Path | None = None,
) -> Tokenizer:
    """The tokenizer of a checkpoint: its tokenizer.json as it is, else built from GGUF metadata, or from Kimi's ranks.

    `config` (Hugging Face keys) supplies vocab_size, bos_token_id and eos_token_id. `tokenizer_config` (of
    tokenizer_config.json) names the first of the end tokens and, where it has the key, the BOS: publishers' configs of
    models tuned from other models are out of date there. Raises ModelFileError for a malformed one, UnsupportedError
    for a kind that is not byte-level BPE or whose pre-tokeniser is not known.
    """
    if tokenizer_json is not None:
        return _tokenizer(_from_json(tokenizer_json), config, tokenizer_config)
    if gguf_metadata is not None:
        return _from_gguf(gguf_metadata, config)
    if tiktoken_model is not None:
        n_ids = _count(config, 0) or None
        return _tokenizer(kimi_tokenizer(tiktoken_model, tokenizer_config, n_ids), config, tokenizer_config)
    raise ModelFileError("the model has no tokenizer; expected a tokenizer.json beside it, or one in its GGUF file")


def _tokenizer(full: tokenizers.Tokenizer, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> Tokenizer:
    added = {token.content: id for id, token in full.get_added_tokens_decoder().items()}
    vocab_size = _count(config, max(full.get_vocab_size(), *(id + 1 for id in added.values()), 0))
    bos = _ids(config, ("bos_token_id",), vocab_size)
    if "bos_token" in tokenizer_config:
        bos = _named(tokenizer_config, "bos_token", added)
    eos = [*_named(tokenizer_config, "eos_token", added), *_ids(config, ("eos_token_id",), vocab_size)]
    # Hugging Face's class for Llama heeds this key, and then no post-processor need say it; other classes do not.
    told = tokenizer_config.get("add_bos_token") is True and "Llama" in str(tokenizer_config.get("tokenizer_class"))
    return Tokenizer(
        full,
        vocab_size=vocab_size,
        bos_id=bos[0] if bos else None,
        eos_ids=list(dict.fromkeys(eos)),
        add_bos=bool(bos) and (told or _first_added(full) == bos[0]),
    )


def _named(tokenizer_config: Mapping[str, Any], key: str, added: Mapping[str, int]) -> list[int]:
    """The id of the token that tokenizer_config.json names under `key`, as a text or an object; none if it does not."""
    value = tokenizer_config.get(key)
    text = value.get("content") if isinstance(value, Mapping) else value
    if text is None:
        return []
    if not isinstance(text, str):
        _fail(f"tokenizer_config.json: {key} is {str(value)[:60]!r}", "a text, or an object with its content")
    return [added[text]] if text in added else []


def _from_json(path: Path) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models

    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            _fail(f"{path} is {size} bytes", f"at most {MAX_JSON_BYTES}")
        full = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read as text: {error}") from error
    except ModelFileError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ModelFileError(f"{path} is not a tokenizer.json: {str(error)[:200]}") from error
    if not isinstance(full.model, models.BPE) or not isinstance(full.decoder, decoders.ByteLevel):
        found = f"{type(full.model).__name__} with the decoder {type(full.decoder).__name__}"
        raise UnsupportedError(f"{path} is {found}; only byte-level BPE (its decoder is ByteLevel) is implemented")
    # A stored truncation or padding setting would silently change prompts.
    full.no_truncation()
    full.no_padding()
    return full


def _first_added(full: tokenizers.Tokenizer) -> int | None:
    """The id that the post-processor puts before a text, read from its JSON: running an inconsistent one panics."""
    state = {} if full.post_processor is None else json.loads(full.post_processor.__getstate__())
    for step in state.get("processors", [state]):
        first = step["single"][0] if step.get("single") else {}
        if "SpecialToken" in first:
            ids = step["special_tokens"].get(first["SpecialToken"]["id"], {}).get("ids")
            return ids[0] if ids else None
    return None


def _from_gguf(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> Tokenizer:
    import tokenizers
    from tokenizers import AddedToken, normalizers

    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        named = {"llama": " (SentencePiece)", "bert": " (WordPiece)", "t5": " (Unigram)"}.get(str(kind), "")
        raise UnsupportedError(
            f"tokenizer.ggml.model is {str(kind)[:80]!r}{named}; only 'gpt2', which is byte-level BPE, is implemented"
        )
    cut = cut_named(str(metadata.get("tokenizer.ggml.pre", "missing")))
    tokens = _list(metadata, "tokenizer.ggml.tokens", str)
    merges = _list(metadata, "tokenizer.ggml.merges", str)
    types = _list(metadata, "tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        _fail(f"tokenizer.ggml.token_type has {len(types)} entries", f"{len(tokens)}, as tokenizer.ggml.tokens has")
    vocab = {token: id for id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        double = next(token for id, token in enumerate(tokens) if vocab[token] != id)
        _fail(f"tokenizer.ggml.tokens holds {double[:80]!r} twice", "each text once")
    full = tokenizers.Tokenizer(_bpe(vocab, merges, cut.ignore_merges))
    full.pre_tokenizer = pre_tokenizer(cut)
    if cut.nfc:
        full.normalizer = normalizers.NFC()
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    full.add_tokens([AddedToken(t, special=kind == _CONTROL, normalized=False) for t, kind in added if t])
    vocab_size = _count(config, len(tokens))
    bos = _ids(metadata, ("tokenizer.ggml.bos_token_id",), len(tokens))
    ends = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    return Tokenizer(
        full,
        vocab_size=vocab_size,
        bos_id=bos[0] if bos else None,
        eos_ids=_ids(metadata, ends, len(tokens)),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", cut.add_bos)),
    )


def _bpe(vocab: dict[str, int], merges: Sequence[str], ignore_merges: bool) -> Any:
    from tokenizers import models

    flat = " ".join(merges).split(" ")
    pairs: list[Any] = list(zip(flat[::2], flat[1::2], strict=False))
    if list(map(" ".join, pairs)) != list(merges):
        wrong = next(merge for merge in merges if merge.count(" ") != 1)
        _fail(f"tokenizer.ggml.merges holds {wrong[:80]!r}", "two tokens with one blank between them")
    try:
        # Twice as fast as writing a tokenizer.json and having it parsed.
        return models.BPE(vocab, pairs, ignore_merges=ignore_merges)
    except Exception as error:  # the library raises nothing narrower
        raise ModelFileError(f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {str(error)[:200]}") from error


def _list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """A list of `kind` from metadata; readers may give lists, tuples or arrays."""
    value: Any = metadata.get(key)
    items = value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, (list, tuple)) else None
    if not isinstance(items, list):
        _fail(f"{key} is {'missing' if value is None else f'a {type(value).__name__}'}", "a list")
    if wrong := {type(item) for item in items} - {kind}:
        _fail(f"{key} holds a {wrong.pop().__name__}", f"only {'strings' if kind is str else 'whole numbers'}")
    return items


def _ids(source: Mapping[str, Any], keys: Collection[str], n_ids: int) -> list[int]:
    """The ids under `keys`, each absent, one id or a list of ids; checked, in order, without repeats."""
    found: dict[int, None] = {}
    for key in keys:
        value = source.get(key)
        for id in value if isinstance(value, (list, tuple)) else () if value is None else (value,):
            if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < n_ids:
                _fail(f"{key} is {str(id)[:40]}", f"a token id from 0 to {n_ids - 1}")
            found[id] = None
    return list(found)


def _count(config: Mapping[str, Any], n_ids: int) -> int:
    """The model's vocabulary size, at least the tokenizer's."""
    value = config.get("vocab_size")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        _fail(f"vocab_size is {str(value)[:40]!r}", "a whole number")
    return max(n_ids, value or 0)


def _fail(found: str, expected: str) -> NoReturn:
    raise ModelFileError(f"{found}; expected {expected}")

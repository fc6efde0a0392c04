"""Tokenizers from tokenizer.json and from GGUF metadata give the same ids; content never becomes control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from freehold.errors import ModelFileError, RequestError, UnsupportedError
from freehold.text.bytelevel import CUTS, pre_tokenizer
from freehold.text.tokenizer import IncrementalDecoder, Tokenizer, load_tokenizer
from tiny_vocabulary import BLANKS, CONTROLS, TAGS, gguf_metadata, tokenizer_json

CONFIG = {"bos_token_id": 1, "eos_token_id": [2, 0]}
TEXT = st.lists(
    st.text(max_size=12)
    | st.sampled_from([*CONTROLS, *TAGS, BLANKS, "<|im_", "end|>", " 123", "don't", "\r\n ", "½²१", "👋🏽", "e\u0301"]),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def from_json(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizer_json(), encoding="utf-8")
    return load_tokenizer(path, None, CONFIG)


@pytest.fixture(scope="module")
def from_gguf() -> Tokenizer:
    return load_tokenizer(None, gguf_metadata(), {})


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_both_sources_give_the_library_s_ids(from_json: Tokenizer, from_gguf: Tokenizer, text: str) -> None:
    expected = Library.from_str(tokenizer_json()).encode(text, add_special_tokens=False).ids
    assert from_json.encode(text, special=True) == from_gguf.encode(text, special=True) == expected
    assert from_json.encode(text) == from_gguf.encode(text)


@settings(max_examples=300, deadline=None)
@given(TEXT, st.booleans())
def test_round_trip(from_gguf: Tokenizer, text: str, special: bool) -> None:
    assert from_gguf.decode(from_gguf.encode(text, special=special)) == text


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_content_never_becomes_control(from_gguf: Tokenizer, text: str) -> None:
    assert not set(from_gguf.encode(text)) & set(from_gguf.special_ids.values())


def test_every_control_token_is_one_id(from_json: Tokenizer, from_gguf: Tokenizer) -> None:
    assert set(from_gguf.special_ids) == {*CONTROLS, *TAGS}
    assert from_json.special_ids == from_gguf.special_ids
    for text, id in from_gguf.special_ids.items():
        assert from_gguf.encode(text, special=True) == [id]
        assert from_gguf.token_bytes(id) == text.encode()


def test_runs_of_blanks_are_text(from_gguf: Tokenizer) -> None:
    assert BLANKS not in from_gguf.special_ids
    assert len(from_gguf.encode(BLANKS)) == 1


def test_ids_and_flags(from_json: Tokenizer, from_gguf: Tokenizer) -> None:
    assert (from_gguf.bos_id, from_gguf.eos_id, sorted(from_gguf.eos_ids), from_gguf.add_bos) == (1, 2, [2], False)
    assert (from_json.bos_id, from_json.eos_id, sorted(from_json.eos_ids), from_json.add_bos) == (1, 2, [0, 2], False)
    assert from_gguf.tags == set(TAGS)
    ends = load_tokenizer(None, gguf_metadata(eot_token_id=0, add_bos_token=True), {})
    assert ends.eos_ids == {0, 2}
    assert ends.add_bos


def test_add_bos_is_read_from_the_post_processor(tmp_path: Path) -> None:
    special = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    data = json.loads(tokenizer_json())
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    tokenizer = load_tokenizer(path, None, CONFIG)
    assert tokenizer.add_bos
    for with_control in (False, True):
        ids = tokenizer.encode("far more than two tokens", special=with_control)
        assert tokenizer.decode(ids) == "far more than two tokens"


def test_an_inconsistent_post_processor_does_no_harm(tmp_path: Path) -> None:
    data = json.loads(tokenizer_json())
    single = [{"SpecialToken": {"id": "nowhere", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    data["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    tokenizer = load_tokenizer(path, None, CONFIG)
    assert not tokenizer.add_bos
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_ids_beyond_the_texts(from_gguf: Tokenizer) -> None:
    n_texts = from_gguf.vocab_size
    padded = load_tokenizer(None, gguf_metadata(), {"vocab_size": n_texts + 8})
    assert padded.vocab_size == n_texts + 8
    assert padded.token_bytes(n_texts + 7) == b""
    for id in (-1, n_texts + 8):
        with pytest.raises(RequestError, match=f"token id {id} is outside"):
            padded.decode([id])


def test_decode_may_skip_control_tokens(from_gguf: Tokenizer) -> None:
    ids = from_gguf.encode("<|im_start|>hi<|im_end|>", special=True)
    assert from_gguf.decode(ids) == "<|im_start|>hi<|im_end|>"
    assert from_gguf.decode(ids, skip_special=True) == "hi"


def test_lone_surrogates_are_refused(from_gguf: Tokenizer) -> None:
    for special in (False, True):
        with pytest.raises(RequestError, match="surrogates"):
            from_gguf.encode("a\ud800", special=special)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 399), max_size=20))
def test_streamed_text_is_the_whole_text(from_gguf: Tokenizer, ids: list[int]) -> None:
    decoder = IncrementalDecoder(from_gguf)
    pushed = [decoder.push(id) for id in ids]
    so_far = b"".join(map(from_gguf.token_bytes, ids))
    shown = "".join(pushed)
    assert shown + decoder.flush() == so_far.decode(errors="replace") == from_gguf.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=10))
def test_streaming_byte_by_byte_holds_back_under_four_bytes(from_gguf: Tokenizer, text: str) -> None:
    byte_ids = {from_gguf.token_bytes(id): id for id in range(from_gguf.vocab_size)}
    decoder = IncrementalDecoder(from_gguf)
    shown = ""
    for n_bytes, byte in enumerate(text.encode(), 1):
        shown += decoder.push(byte_ids[bytes([byte])])
        assert "\ufffd" not in shown or "\ufffd" in text
        assert n_bytes - len(shown.encode()) <= 3
    assert shown + decoder.flush() == text


def test_merges_that_spell_a_control_token_do_not_reach_it() -> None:
    metadata = gguf_metadata()
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    spelled = gguf_metadata(
        tokens=[*tokens, "<|", "<|>"],
        token_type=[*types, 1, 3],
        merges=["< |", "<| >", *metadata["tokenizer.ggml.merges"]],
    )
    tokenizer = load_tokenizer(None, spelled, {})
    control = len(tokens) + 1
    assert tokenizer.encode("a<|>b", special=True).count(control) == 1
    assert control not in tokenizer.encode("a<|>b")
    assert tokenizer.decode(tokenizer.encode("a<|>b")) == "a<|>b"


def test_a_control_token_reached_by_other_text_is_an_error() -> None:
    metadata = gguf_metadata()
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    disguised = gguf_metadata(
        tokens=[*tokens, "Ġ|"], token_type=[*types, 3], merges=["Ġ |", *metadata["tokenizer.ggml.merges"]]
    )
    with pytest.raises(ModelFileError, match="encoded as a control token"):
        load_tokenizer(None, disguised, {}).encode("a |")


PIECES = {
    "gpt-2": ["I", "'ll", " pay", " 1234", " €", " now", "\n\n", " x"],
    "smollm": ["I", "'ll", " pay", " ", "1", "2", "3", "4", " €", " now", "\n\n", " x"],
    "llama-bpe": ["I", "'ll", " pay", " ", "123", "4", " €", " now", "\n\n", " x"],
    "qwen2": ["I", "'ll", " pay", " ", "1", "2", "3", "4", " €", " now", "\n\n", " x"],
    "glm4": ["I", "'ll", " pay", " ", "123", "4", " €", " now", "\n\n", " x"],
    "deepseek-llm": ["I", "'", "ll", " pay", " ", "1", "2", "3", "4", " ", "€", " now", "\n", "\n", " x"],
    "deepseek-v3": ["I", "'ll", " pay", " ", "123", "4", " €", " now", "\n\n", " x"],
    "gpt-4o": ["I'll", " pay", " ", "123", "4", " €", " now", "\n\n", " x"],
}


@pytest.mark.parametrize("name", PIECES)
def test_how_each_family_cuts(name: str) -> None:
    text = "I'll pay 1234 € now\n\n x"
    spans = [span for _, span in pre_tokenizer(CUTS[name]).pre_tokenize_str(text)]
    assert [text[start:end] for start, end in spans] == PIECES[name]


def test_only_qwen_normalises() -> None:
    for pre, expected in (("qwen2", "\u00e9"), ("llama-bpe", "e\u0301")):
        tokenizer = load_tokenizer(None, gguf_metadata(pre=pre), {})
        assert tokenizer.decode(tokenizer.encode("e\u0301")) == expected


def test_deepseek_cuts_cjk_runs_apart() -> None:
    text = "abc世界カタdef"
    spans = [span for _, span in pre_tokenizer(CUTS["deepseek-v3"]).pre_tokenize_str(text)]
    assert [text[start:end] for start, end in spans] == ["abc", "世界カタ", "def"]


def test_deepseek_v2_cuts_by_script() -> None:
    """Its class of punctuation runs from ':' to '~', ASCII letters included: an accent ends a word."""
    words = ["Don", "'", "t", " caf", "é", "你好", " world", " ", "5", "\uff0c", "世界", "。", "안녕", " привет"]
    pieces = [*words, "\r", "\n", "\treturn", "  "]
    text = "".join(pieces)
    spans = [span for _, span in pre_tokenizer(CUTS["deepseek-llm"]).pre_tokenize_str(text)]
    assert [text[start:end] for start, end in spans] == pieces


def test_gpt_4o_cuts_by_case_and_keeps_slashes() -> None:
    pieces = ["we'Re", " HTTPServer'S", " get", "Name", " Élan世界", " //\n/", " μλ", "Ω", "  ", " x", "\t"]
    text = "".join(pieces)
    spans = [span for _, span in pre_tokenizer(CUTS["gpt-4o"]).pre_tokenize_str(text)]
    assert [text[start:end] for start, end in spans] == pieces


def test_metadata_may_hold_tuples_and_arrays(from_gguf: Tokenizer) -> None:
    metadata = gguf_metadata()
    types = np.array(metadata["tokenizer.ggml.token_type"], np.int32)
    tokenizer = load_tokenizer(
        None, gguf_metadata(token_type=types, tokens=tuple(metadata["tokenizer.ggml.tokens"])), {}
    )
    assert tokenizer.encode("The quick", special=True) == from_gguf.encode("The quick", special=True)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": "llama"}, UnsupportedError, "SentencePiece"),
        ({"model": None}, UnsupportedError, "None"),
        ({"pre": "default"}, UnsupportedError, "'default'"),
        ({"pre": "tekken"}, UnsupportedError, "tekken"),
        ({"pre": None}, UnsupportedError, "missing"),
        ({"tokens": None}, ModelFileError, "tokens is missing"),
        ({"tokens": "abc"}, ModelFileError, "tokens is a str"),
        ({"tokens": ["a", 3]}, ModelFileError, "tokens holds a int"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, ModelFileError, "'a' twice"),
        ({"token_type": [1]}, ModelFileError, "token_type has 1 entries"),
        ({"token_type": None}, ModelFileError, "token_type is missing"),
        ({"merges": ["a b c"]}, ModelFileError, "'a b c'"),
        ({"merges": [b"a b"]}, ModelFileError, "merges holds a bytes"),
        ({"merges": ["nowhere tobefound"]}, ModelFileError, "does not fit"),
        ({"tokens": ["<" + "x" * 300, "a", "b"], "token_type": [3, 1, 1], "merges": []}, ModelFileError, "is too long"),
        ({"bos_token_id": 10**9}, ModelFileError, "bos_token_id is 1000000000"),
        ({"eos_token_id": -1}, ModelFileError, "eos_token_id is -1"),
        ({"eos_token_id": "2"}, ModelFileError, "eos_token_id is 2"),
    ],
)
def test_malformed_metadata(changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        load_tokenizer(None, gguf_metadata(**changes), {})


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"{", ModelFileError, "not a tokenizer.json"),
        (b"\xff", ModelFileError, "cannot be read"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}', UnsupportedError, "WordLevel"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', UnsupportedError, "NoneType"),
    ],
)
def test_malformed_tokenizer_json(tmp_path: Path, content: bytes, error: type[Exception], said: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(error, match=said):
        load_tokenizer(path, None, {})


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no tokenizer"):
        load_tokenizer(None, None, {})
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_tokenizer(tmp_path / "absent.json", None, {})

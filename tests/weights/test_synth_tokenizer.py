"""The tokenizer of a checkpoint with random weights: taken along, translated to GGUF, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.errors import ModelFileError, NotFoundError, UnsupportedError
from freehold.text.tokenizer import load_tokenizer
from freehold.weights import open_checkpoint
from freehold.weights.synth import write_checkpoint
from tiny_shapes import tiny


@pytest.fixture
def tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """Write a tokenizer of a few tokens, with changes to its tokenizer.json; returns its directory."""

    def write(**changes: Any) -> Path:
        vocab = {chr(code): code - 33 for code in range(33, 127)} | {"ab": 94, "Ġ": 95}
        model = {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]} | changes.pop("model", {})
        added = [
            {"id": 300, "content": "<|startoftext|>", "special": True},
            {"id": 302, "content": "<t>", "special": False},
        ]
        directory = tmp_path / "tokenizer"
        directory.mkdir()
        (directory / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added, **changes}))
        (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
        return directory

    return write


def test_a_tokenizer_goes_along(tmp_path: Path, tokenizer: Callable[..., Path]) -> None:
    source = tokenizer()
    directory = write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "a", tokenizer=source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (directory / name).read_bytes() == (source / name).read_bytes()
    alone = write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "b", tokenizer=source / "tokenizer.json")
    assert not (alone / "tokenizer_config.json").exists()
    path = write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "c", tokenizer=source, container="gguf")
    with open_checkpoint(path) as checkpoint:
        metadata = checkpoint.gguf_metadata
        assert metadata is not None
        assert checkpoint.chat_template == "{{ messages }}"
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
        assert (len(tokens), tokens[94], tokens[300], tokens[319]) == (320, "ab", "<|startoftext|>", "[PAD319]")
        assert (types[94], types[300], types[302], types[319]) == (1, 3, 4, 5)
        assert metadata["tokenizer.ggml.merges"] == ("a b",)
        assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) == ("gpt2", "gpt-4o")
        assert load_tokenizer(None, metadata, checkpoint.config).encode("ab!") == [94, 0]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": {"type": "Unigram"}}, UnsupportedError, "Unigram"),
        ({"model": {"vocab": {"a": 0, "b": 320}}}, ModelFileError, "token id 320.*another model's"),
        ({"model": {"vocab": {"a": 0, "b": []}}}, ModelFileError, "token id"),
        ({"model": {"vocab": {"a": 0, "b": 0}}}, ModelFileError, "one id to two"),
        ({"model": {"vocab": {"a": 0, "[PAD7]": 1}}}, ModelFileError, "one text to two"),
        ({"model": {"vocab": {"\ud800": 0}}}, ModelFileError, "not Unicode"),
        ({"model": {"merges": ["a  b"]}}, ModelFileError, "merge"),
        ({"model": {"merges": {}}}, ModelFileError, "merges"),
        ({"added_tokens": [{"id": 1}]}, ModelFileError, "added tokens"),
        ({"model": None}, UnsupportedError, "byte-level BPE"),
    ],
)
def test_tokenizers_that_do_not_fit(
    tmp_path: Path, tokenizer: Callable[..., Path], changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    if changes.get("model", {}) is None:
        source = tokenizer()
        (source / "tokenizer.json").write_text("{}")
    else:
        source = tokenizer(**changes)
    with pytest.raises(error, match=words):
        write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "a", tokenizer=source)
    assert not (tmp_path / "a").exists()


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        write_checkpoint(tiny("gpt-oss-20b"), tmp_path / "a", tokenizer=tmp_path / "none")

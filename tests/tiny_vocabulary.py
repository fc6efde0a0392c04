"""A small byte-level tokenizer trained on the spot, as a tokenizer.json and as the same in GGUF metadata."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and doesn't look back.",
    "Freehold runs open models on hardware you own: 12 cores, 345 tokens a second.",
    "def forward(batch, kv):\n    return logits[batch.logit_rows]\n",
    "Süße Übung, naïve café, 你好 世界, привет мир, 👋🏽 hello.",
]
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<think>", "</think>"]
BLANKS = "        "


@cache
def tokenizer_json() -> str:
    """The text of a tokenizer.json, in the form SmolLM2's publisher writes it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=CONTROLS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in [*TAGS, BLANKS]])
    return tokenizer.to_str()


@cache
def _parsed() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(tokenizer_json())
    return parsed


def gguf_metadata(**changes: Any) -> dict[str, Any]:
    """What a converter writes for the same tokenizer; `changes` replace "tokenizer.ggml." keys, None removes one."""
    texts = dict(_parsed()["model"]["vocab"])
    types = dict.fromkeys(texts.values(), 1)
    for token in _parsed()["added_tokens"]:
        texts[token["content"]] = token["id"]
        types[token["id"]] = 3 if token["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in _parsed()["model"]["merges"]]
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": sorted(texts, key=texts.__getitem__),
        "merges": merges,
        "token_type": [types[id] for id in sorted(types)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": False,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}

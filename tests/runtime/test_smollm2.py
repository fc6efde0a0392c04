"""The whole way with a real model: file, tokenizer, template, engine, kernels, stopping."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold import LocalModel, load

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[LocalModel]:
    with load(smollm2_path, context=1024) as loaded:
        yield loaded


def test_it_answers_and_stops(model: LocalModel) -> None:
    reply = model.chat(QUESTION, max_tokens=40)
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"
    assert "<|im_end|>" not in reply.text


def test_streaming_gives_the_same_and_the_prefix_is_reused(model: LocalModel) -> None:
    with model.chat(QUESTION, stream=True, max_tokens=40) as stream:
        text = "".join(event.text for event in stream)
        reply = stream.reply()
    assert text == reply.text == model.chat(QUESTION, max_tokens=40).text
    assert reply.n_cached > 0


def test_seeded_sampling_repeats(model: LocalModel) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    first = model.chat(QUESTION, seed=7, **options).text
    assert model.chat(QUESTION, seed=7, **options).text == first
    assert {model.chat(QUESTION, seed=seed, **options).text for seed in range(8, 12)} != {first}


def test_logits_agree_with_generation(model: LocalModel) -> None:
    ids = model.tokenize("The capital of France is")
    logits = model.logits(ids)
    assert logits.shape == (len(ids), model.vocab_size)
    assert np.isfinite(logits).all()
    assert model.detokenize([int(logits[-1].argmax())]) == model.generate(ids, max_tokens=1).text == " Paris"

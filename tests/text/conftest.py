"""The harmony tokenizer: whole, fetched on first use, and cut down to the tests' own words, which needs no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freehold.text.harmony import Harmony
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from harmony_library import Judge, vocabulary

CONFIG = {"vocab_size": 201088, "bos_token_id": 199998, "eos_token_id": [200002, 199999, 200012]}
"""As gpt-oss's config.json and generation_config.json have them."""


@pytest.fixture(scope="session")
def small_harmony_tokenizer() -> Tokenizer:
    """Real ids for the words of the golden conversations and of the tests; single bytes for what else is asked."""
    path = Path(__file__).parent.parent / "golden" / "harmony_tokenizer.json"
    return load_tokenizer(path, None, CONFIG)


@pytest.fixture(scope="session")
def tokens(small_harmony_tokenizer: Tokenizer) -> HarmonyTokens:
    found = HarmonyTokens.of(small_harmony_tokenizer)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def harmony(small_harmony_tokenizer: Tokenizer) -> Harmony:
    return Harmony(small_harmony_tokenizer)


@pytest.fixture(scope="session")
def harmony_vocabulary() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return vocabulary(Path(os.environ.get("FREEHOLD_TEST_HOME") or cache / "freehold-tests"))


@pytest.fixture(scope="session")
def harmony_tokenizer(harmony_vocabulary: Path) -> Tokenizer:
    """gpt-oss's own, whole."""
    return load_tokenizer(harmony_vocabulary, None, CONFIG)


@pytest.fixture(scope="session")
def judge(harmony_vocabulary: Path) -> Judge:
    """openai-harmony with the same vocabulary."""
    return Judge(harmony_vocabulary.parent)

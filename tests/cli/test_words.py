"""How `freehold run` tells the model from the prompt."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import RequestError
from freehold.terminal.words import Request, join_prompt, read_words

NAMES = ("smollm2", "smollm2:135m")


def read(*words: str, model: str | None = None) -> Request:
    return read_words(words, model, lambda word: word in ("smollm2", "my-model"), NAMES)


@pytest.mark.parametrize(
    ("words", "model", "prompt"),
    [
        ([], None, None),
        (["smollm2"], "smollm2", None),
        (["my-model"], "my-model", None),
        (["Hello"], None, "Hello"),
        (["What is 1/2?"], None, "What is 1/2?"),
        (["smollm2", "Hello"], "smollm2", "Hello"),
        (["nonsense", "Hello"], "nonsense", "Hello"),
        (["./model"], "./model", None),
        (["/models/x"], "/models/x", None),
        (["~/x"], "~/x", None),
        (["missing.gguf"], "missing.gguf", None),
        (["please explain x.gguf"], None, "please explain x.gguf"),
        ([""], None, ""),
    ],
)
def test_reading(words: list[str], model: Any, prompt: str | None) -> None:
    assert read(*words) == Request(model, prompt)


def test_the_option_leaves_no_doubt() -> None:
    assert read("smollm2", model="my-model") == Request("my-model", "smollm2")
    assert read(model="my-model") == Request("my-model", None)


def test_a_near_miss_is_remarked() -> None:
    request = read("smolm2")
    assert request.prompt == "smolm2"
    assert "did you mean smollm2" in request.notes[0]
    assert read("Hello").notes == ()
    assert read("smollm2 is what?").notes == ()


@pytest.mark.parametrize(
    ("words", "model", "hint"),
    [
        (["What", "is", "this?"], None, 'freehold run What "is this?"'),
        (["smollm2", "What", "is"], None, 'freehold run smollm2 "What is"'),
        (["What", "is"], "smollm2", 'freehold run "What is"'),
    ],
)
def test_unquoted_prompts_get_a_hint(words: list[str], model: Any, hint: str) -> None:
    with pytest.raises(RequestError) as error:
        read(*words, model=model)
    assert hint in str(error.value)


def test_prompt_then_blank_line_then_piped_text() -> None:
    assert join_prompt("Summarise", "the text") == "Summarise\n\nthe text"
    assert join_prompt("Summarise", None) == "Summarise"
    assert join_prompt(None, "the text") == "the text"
    assert join_prompt(None, None) is join_prompt("", "") is None


@given(st.text())
def test_any_single_word_is_read_somehow(word: str) -> None:
    request = read(word)
    assert (request.model is None) != (request.prompt is None)

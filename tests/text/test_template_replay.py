"""Turns as they were sampled, back in the prompt of a chat template: the same text, the model's own ids."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from freehold.text.chat import Message
from freehold.text.templates import ChatTemplate
from freehold.text.tokenizer import Tokenizer, load_tokenizer
from tiny_vocabulary import CONTROLS, TAGS, gguf_metadata

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ EXPRESSION }}<|im_end|>\n{% endfor %}"
QUESTION, NEXT = Message("user", "hello"), Message("user", "and?")
METADATA = gguf_metadata()
N_IDS = len(METADATA["tokenizer.ggml.tokens"])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(None, METADATA, {})


@pytest.fixture(scope="module")
def smollm2(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(SMOLLM2, tokenizer)


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """`text` cut into single bytes, which no encoder would do."""
    return [tokenizer.encode(bytes([byte]).decode("latin-1"))[0] for byte in text.encode("ascii")]


def turn(tokenizer: Tokenizer, ids: Sequence[int], content: str | None = None) -> Message:
    return Message("assistant", tokenizer.decode(ids) if content is None else content, ids=tuple(ids))


def holds(whole: Sequence[int], part: Sequence[int]) -> bool:
    return any(list(whole[i : i + len(part)]) == list(part) for i in range(len(whole)))


def test_the_second_prompt_begins_with_the_first_and_its_answer(smollm2: ChatTemplate, tokenizer: Tokenizer) -> None:
    sampled = [*letters(tokenizer, "The quick brown fox"), tokenizer.special_ids["<|im_end|>"]]
    assert sampled[:-1] != tokenizer.encode("The quick brown fox")
    prompt = smollm2.render([QUESTION])
    said = turn(tokenizer, sampled, "The quick brown fox")
    history = smollm2.render([QUESTION, said, NEXT])
    assert history[: len(prompt) + len(sampled)] == prompt + sampled
    assert history.count(sampled[-1]) == 4  # the end that was sampled is not there twice
    assert tokenizer.decode(history) == smollm2.render_text([QUESTION, said, NEXT])


IDS = st.lists(st.integers(0, N_IDS - 1), max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(IDS, min_size=1, max_size=3), st.booleans())
def test_replay_never_changes_the_text(
    smollm2: ChatTemplate, tokenizer: Tokenizer, turns: list[list[int]], ended: bool
) -> None:
    end = [tokenizer.special_ids["<|im_end|>"]] if ended else []
    messages = [QUESTION]
    for ids in turns:
        messages += [Message("assistant", tokenizer.decode(ids), ids=(*ids, *end)), NEXT]
    text = smollm2.render_text(messages)
    assert tokenizer.decode(smollm2.render(messages)) == text


@settings(max_examples=200, deadline=None)
@given(IDS)
def test_every_turn_of_text_is_replayed(smollm2: ChatTemplate, tokenizer: Tokenizer, ids: list[int]) -> None:
    text = tokenizer.decode(ids)
    assume(text.strip() and "\ufffd" not in text and set(ids).isdisjoint(tokenizer.special_ids.values()))
    end = tokenizer.special_ids["<|im_end|>"]
    prompt = smollm2.render([QUESTION])
    history = smollm2.render([QUESTION, turn(tokenizer, [*ids, end], text), NEXT])
    assert history[: len(prompt) + len(ids) + 1] == [*prompt, *ids, end]


@pytest.mark.parametrize("text", ["hi <|im_end|><|im_start|>system", "<|im_", " a <|im_end|> b <|im_ ", "<think>x"])
def test_control_token_texts_stay_text(smollm2: ChatTemplate, tokenizer: Tokenizer, text: str) -> None:
    ids = letters(tokenizer, text)
    history = smollm2.render([QUESTION, turn(tokenizer, ids, text), NEXT])
    assert holds(history, ids)
    assert history.count(tokenizer.special_ids["<|im_start|>"]) == 5
    assert tokenizer.decode(history) == smollm2.render_text([QUESTION, turn(tokenizer, ids, text), NEXT])


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_token_inside_a_turn_is_not_replayed(
    smollm2: ChatTemplate, tokenizer: Tokenizer, control: str
) -> None:
    ids = [*letters(tokenizer, "a"), tokenizer.special_ids[control], *letters(tokenizer, "b")]
    messages = [QUESTION, turn(tokenizer, ids), NEXT]
    expected = smollm2.render([QUESTION, Message("assistant", f"a{control}b"), NEXT])
    assert smollm2.render(messages) == expected


@pytest.mark.parametrize(
    ("expression", "text", "content", "replayed"),
    [
        ("m.content", "hello", "hello", True),
        ("m.content | trim", "hello", "hello", True),
        ("m.content | trim", " hello\n", " hello\n", False),  # the template does not write the blanks
        ("m.content", "hello\n", "hello", False),  # the client did not send them
        ("m.content + '\n'", "hello\n", "hello", True),
        ("m.content | upper", "hello", "hello", False),
        ("m.content.split('</think>')[-1]", "hmm</think>hello", "hmm</think>hello", False),
        ("'<think>' + m.reasoning_content + '</think>' + m.content", "<think>hm</think>hello", "hello", True),
        ("'' if loop.last else m.content", "hello", "hello", True),
        ("m.content if loop.last else ''", "hello", "hello", False),
        ("m.content + m.content", "hello", "hello", False),
        ("m.content if m.content[0] == 'h' else 'other'", "hello", "hello", False),  # the edge itself is seen
        ("m.content", "hello", "hallo", False),
        ("m.content.foo.bar if m.content[0] not in 'ha' else m.content", "hello", "hello", False),
    ],
)
def test_only_what_the_template_writes_verbatim(
    tokenizer: Tokenizer, expression: str, text: str, content: str, replayed: bool
) -> None:
    template = ChatTemplate(TURN.replace("EXPRESSION", expression), tokenizer)
    ids = [id for piece in split_tags(text) for id in tagged(tokenizer, piece)]
    said = Message("assistant", content, "hm" if "reasoning" in expression else None, ids=tuple(ids))
    others = [Message("user", "hi"), Message("assistant", "a hi", "hm"), said, Message("assistant", "hi", "")]
    messages = others if "reasoning" not in expression else [said]
    history = template.render(messages)
    assert holds(history, ids) == replayed
    assert tokenizer.decode(history) == template.render_text(messages)


def split_tags(text: str) -> list[str]:
    for tag in TAGS:
        text = text.replace(tag, f"\0{tag}\0")
    return text.split("\0")


def tagged(tokenizer: Tokenizer, piece: str) -> list[int]:
    return [tokenizer.special_ids[piece]] if piece in TAGS else letters(tokenizer, piece)


def test_a_turn_is_found_where_it_was_said(smollm2: ChatTemplate, tokenizer: Tokenizer) -> None:
    """The same words stand in the user's question too, which keeps its own ids."""
    ids = letters(tokenizer, "hello")
    messages = [QUESTION, turn(tokenizer, ids, "hello"), Message("user", "hello")]
    history, plain = smollm2.render(messages), tokenizer.encode("user\nhello")
    assert holds(history, [*tokenizer.encode("assistant\n"), *ids])
    assert [holds(history[i:], plain) for i in (0, len(smollm2.render([QUESTION])))] == [True, True]


def test_half_a_character_is_not_replayed(smollm2: ChatTemplate, tokenizer: Tokenizer) -> None:
    half = next(id for id in range(N_IDS) if tokenizer.token_bytes(id) == "é".encode()[:1])
    messages = [QUESTION, turn(tokenizer, [half], "\ufffd"), NEXT]
    assert smollm2.render(messages) == smollm2.render([QUESTION, Message("assistant", "\ufffd"), NEXT])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, N_IDS - 1), max_size=8), st.text(max_size=4))
def test_no_ids_make_it_raise(smollm2: ChatTemplate, tokenizer: Tokenizer, ids: list[int], content: str) -> None:
    messages = [QUESTION, Message("assistant", content, ids=tuple(ids)), NEXT]
    assert tokenizer.decode(smollm2.render(messages)) == smollm2.render_text(messages)

"""/tokenize and /detokenize, by a scripted model's bytes: what llama.cpp's and vLLM's clients send and read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.server import ollama, tokens
from ollama_scripted import Talker, says
from scripted_model import ASSISTANT, BOS, EOS, SPLIT, USER, VOCAB, PlainTalk
from served import served

HI = {"role": "user", "content": "a"}
ENDPOINTS = (*tokens.ENDPOINTS, *ollama.ENDPOINTS)


@pytest.fixture(scope="module")
def talker() -> Iterator[Talker]:
    models = {"m": says("ok", PlainTalk)}
    with served(models, ENDPOINTS) as url, Talker(url, models) as talker:
        yield talker


def got(talker: Talker, path: str = "/tokenize", **body: Any) -> dict[str, Any]:
    response = talker.http.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(talker: Talker, path: str = "/tokenize", status: int = 400, **body: Any) -> str:
    response = talker.http.post(path, json=body)
    assert response.status_code == status, response.text
    message: str = response.json()["error"]["message"]
    return message


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ({"content": "ab"}, [97, 98]),  # as llama.cpp
        ({"content": "ab", "add_special": True}, [BOS, 97, 98]),
        ({"prompt": "ab"}, [BOS, 97, 98]),  # as vLLM
        ({"prompt": "ab", "add_special_tokens": False}, [97, 98]),
        ({"prompt": "<bos>a"}, [BOS, 97]),  # never two
        ({"content": "a<|im_end|>"}, [97, EOS]),
        ({"content": "<|im_end|>", "parse_special": False}, list(b"<|im_end|>")),
        ({"content": ""}, []),
        ({"messages": [{"role": "user", "content": "a"}]}, [BOS, USER, 97, ASSISTANT]),
        ({"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False}, [BOS, USER, 97]),
    ],
)
def test_ids(talker: Talker, body: dict[str, Any], ids: list[int]) -> None:
    assert got(talker, **body) == {"tokens": ids, "count": len(ids), "max_model_len": 256}
    assert got(talker, model="M:latest", **body)["tokens"] == ids


def test_messages_count_what_an_answer_to_them_counts(talker: Talker) -> None:
    messages = [{"role": "user", "content": "a <|im_end|>"}]
    assert talker.whole(messages=messages)["prompt_eval_count"] == got(talker, messages=messages)["count"]


def test_pieces(talker: Talker) -> None:
    pieces = got(talker, content="a€<bos>", with_pieces=True)["tokens"]
    assert pieces == [
        {"id": 97, "piece": "a"},
        {"id": 0xE2, "piece": [0xE2]},
        {"id": 0x82, "piece": [0x82]},
        {"id": 0xAC, "piece": [0xAC]},
        {"id": BOS, "piece": ""},
    ]


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_there_and_back(talker: Talker, text: str) -> None:
    ids = got(talker, content=text, parse_special=False)["tokens"]
    assert got(talker, "/detokenize", tokens=ids) == {"content": text, "prompt": text}


def test_ids_that_are_no_text(talker: Talker) -> None:
    assert got(talker, "/detokenize", tokens=[97, SPLIT])["content"] == "a\ufffd"
    assert got(talker, "/detokenize", tokens=[])["content"] == ""


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "expected one of content, prompt and messages; found none of them"),
        ("/tokenize", {"content": "a", "prompt": "a"}, "expected one of content, prompt and messages; found content"),
        ("/tokenize", {"content": 5}, "content is 5"),
        ("/tokenize", {"content": "x" * 4_000_001}, 'content is "xxx'),
        ("/tokenize", {"messages": []}, "messages is a list"),
        ("/tokenize", {"messages": [{"role": "x"}]}, "messages[0].role is 'x'"),
        ("/tokenize", {"messages": [HI], "chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs holds 'tools'"),
        ("/detokenize", {}, "tokens is missing"),
        ("/detokenize", {"tokens": ["a"]}, 'tokens[0] is "a"'),
        ("/detokenize", {"tokens": [VOCAB]}, "token id 269 is outside the vocabulary"),
        ("/detokenize", {"tokens": [-1]}, "token id -1 is outside the vocabulary"),
        ("/detokenize", {"tokens": [10**30]}, f"token id {10**30} is outside the vocabulary"),
    ],
)  # fmt: skip
def test_refusals(talker: Talker, path: str, body: dict[str, Any], message: str) -> None:
    assert refused(talker, path, **body).startswith(message)


def test_a_model_without_a_template() -> None:
    with served({"base": says("ok", PlainTalk, template=False)}, ENDPOINTS) as url:
        response = httpx.post(f"{url}/tokenize", json={"messages": [{"role": "user", "content": "a"}]})
        assert response.status_code == 400
        assert "carries no chat template" in response.json()["error"]["message"]


def test_a_model_must_be_named_where_there_are_two() -> None:
    models = {"b": says("ok", PlainTalk), "a": says("ok", PlainTalk)}
    with served(models, ENDPOINTS) as url, Talker(url, models) as talker:
        assert refused(talker, content="x") == "model is missing; expected one of a, b"
        assert "no model 'c'" in refused(talker, status=404, content="x", model="c")
        assert got(talker, content="x", model="a")["count"] == 1

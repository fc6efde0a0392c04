"""OpenAI's Completions on scripted models, by its own client and by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openai_scripted import Talker, joined_completion, talking
from scripted_model import ASSISTANT, BOS, SPLIT, VOCAB, PlainTalk

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def talker() -> Iterator[Talker]:
    """A model that counts on from the prompt's last byte."""
    with talking("Paris", chat_format=PlainTalk) as talker:
        yield talker


def both(talker: Talker, **body: Any) -> dict[str, Any]:
    """The answer that is not streamed, which the streamed one must equal."""
    answer, chunks = talker.whole(path=PATH, **body), talker.chunks(path=PATH, **body)
    joined = joined_completion(chunks)
    assert {**joined, "id": answer["id"], "created": answer["created"]} == answer
    return answer


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def test_a_prompt_is_continued(talker: Talker) -> None:
    answer = both(talker, prompt="abc", max_tokens=4)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [{"text": "defg", "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 4
    assert len(texts(both(talker, prompt="abc"))[0]) == 16


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (["abc", "x"], ["d", "y"]),
        ([97, 98], ["c"]),
        ([[97, 98], [120]], ["c", "y"]),
    ],
)
def test_prompts_of_every_kind(talker: Talker, prompt: Any, said: list[str]) -> None:
    answer = both(talker, prompt=prompt, max_tokens=1)
    assert texts(answer) == said
    assert answer["usage"]["completion_tokens"] == len(said)


def test_each_prompt_is_answered_n_times(talker: Talker) -> None:
    answer = both(talker, prompt=["a", "x"], n=2, best_of=2, max_tokens=2)
    assert texts(answer) == ["bc", "bc", "yz", "yz"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 2 * 2
    assert answer["usage"]["completion_tokens"] == 8


def test_many_prompts_at_once(talker: Talker) -> None:
    prompts = [chr(97 + i % 24) for i in range(128)]
    assert texts(both(talker, prompt=prompts, max_tokens=1)) == [chr(ord(prompt) + 1) for prompt in prompts]


def test_the_prompt_is_echoed(talker: Talker) -> None:
    assert texts(both(talker, prompt=["abc", "x"], echo=True, max_tokens=1)) == ["abcd", "xy"]


def test_stop_strings(talker: Talker) -> None:
    (choice,) = both(talker, prompt="a", stop=["ef"])["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("bcd", "stop")


def test_logprobs_in_parallel_lists(talker: Talker) -> None:
    (choice,) = both(talker, prompt="a", logprobs=1, max_tokens=3)["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["b", "c", "d"]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert [list(top) for top in logprobs["top_logprobs"]] == [["b"], ["c"], ["d"]]
    assert all(-1 < logprob < 0 for logprob in logprobs["token_logprobs"])


def test_tokens_that_are_parts_of_characters_are_named_by_their_bytes(talker: Talker) -> None:
    talker.model.script.answer = [ord("<"), SPLIT, 0xAC, ord(">")]
    (choice,) = both(talker, prompt=[ASSISTANT], logprobs=0)["choices"]
    assert choice["text"] == "<€>"
    assert choice["logprobs"]["tokens"] == ["<", "bytes:\\xe2\\x82", "bytes:\\xac", ">"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2]
    assert choice["logprobs"]["top_logprobs"] == [{}] * 4


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"suffix": "x"}, "suffix", "filling in"),
        ({"best_of": 2}, "best_of", "the same as n"),
        ({"echo": True, "logprobs": 1}, "echo", "one of them"),
        ({"echo": True, "prompt": [97]}, "echo", "text to echo"),
        ({"logprobs": 6}, "logprobs", "5"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"prompt": []}, "prompt", "0 prompts"),
        ({"prompt": ["a"] * 129}, "prompt", "128"),
        ({"prompt": ["a"] * 9, "n": 16}, "prompt", "128"),
        ({"prompt": ["a", 97]}, "prompt", "of one kind"),
        ({"prompt": [[97], 98]}, "prompt", "of one kind"),
        ({"prompt": [True]}, "prompt", "of one kind"),
        ({"prompt": [1.5]}, "prompt", "of one kind"),
        ({"prompt": 5}, "prompt", "string"),
        ({"n": 17}, "n", "16"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"prompt": [VOCAB]}, None, str(VOCAB)),
        ({"prompt": [-1]}, None, "-1"),
        ({"prompt": [[]]}, None, "no token ids"),
        ({"prompt": "x" * 300}, None, "256"),
    ],
)
def test_what_is_refused(talker: Talker, body: dict[str, Any], field: str | None, words: str) -> None:
    for stream in (False, True):
        response = talker.post(PATH, **{"prompt": "a", **body}, stream=stream)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == field
        assert words in error["message"]


def test_a_prompt_is_missing(talker: Talker) -> None:
    assert talker.post(PATH).json()["error"]["message"] == "prompt is missing"


def test_an_empty_prompt_is_a_beginning(talker: Talker) -> None:
    assert talker.whole(path=PATH, prompt="", max_tokens=1)["usage"]["prompt_tokens"] == 1  # BOS


def test_openais_client(talker: Talker) -> None:
    create = talker.openai.completions.create
    answer = create(model="m", prompt=["a", "b"], max_tokens=2, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["bc", "cd"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    chunks = list(create(model="m", prompt="a", max_tokens=2, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "bc"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 4
    with pytest.raises(openai.BadRequestError, match="filling in"):
        create(model="m", prompt="a", suffix="z")


def test_openais_async_client(talker: Talker) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{talker.url}/v1", api_key="none", max_retries=0) as client:
            answer = await client.completions.create(model="m", prompt="a", max_tokens=2)
            assert answer.choices[0].text == "bc"
            stream = await client.completions.create(model="m", prompt="a", max_tokens=2, stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "bc"

    asyncio.run(run())


def test_an_error_within_a_stream_ends_it_without_done() -> None:
    with talking(lambda prompt: bytes(1 // 0), chat_format=PlainTalk) as talker:
        response = talker.post(PATH, prompt=[ASSISTANT], stream=True)
    assert response.status_code == 200
    assert response.text.startswith('data: {"error":{"message":"')
    assert "[DONE]" not in response.text


@given(st.lists(st.integers(0, VOCAB - 1), max_size=25), st.integers(1, 30), st.booleans())
@settings(max_examples=40, deadline=None)
def test_streaming_equals_not_streaming(talker: Talker, ids: list[int], max_tokens: int, logprobs: bool) -> None:
    talker.model.script.answer = ids
    body: dict[str, Any] = {"logprobs": 2} if logprobs else {}
    answer = both(talker, prompt=[BOS, ASSISTANT], max_tokens=max_tokens, **body)
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")

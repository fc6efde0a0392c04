"""What Ollama's clients may ask for, and what it means here; what is ignored is said, what is refused is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from freehold.text.request import Grammar
from ollama_scripted import ASK, Talker, talking
from scripted_model import HarmonyTalk, PlainTalk, SwitchedTalk


@pytest.fixture(scope="module")
def plain() -> Iterator[Talker]:
    """A model that answers "ok"."""
    with talking("ok", PlainTalk) as talker:
        yield talker


@pytest.fixture(scope="module")
def talk() -> Iterator[Talker]:
    """A model that can think."""
    with talking("<|channel|>final<|message|>ok<|return|>", HarmonyTalk) as talker:
        yield talker


@pytest.mark.parametrize(
    ("think", "effort"), [(None, None), (True, None), (False, "none"), ("low", "low"), ("high", "high")]
)
def test_think_as_levels(talk: Talker, think: Any, effort: str | None) -> None:
    talk.whole(think=think)
    assert talk.asked.reasoning_effort == effort


def test_think_as_a_switch() -> None:
    with talking("ok", SwitchedTalk) as talker:
        for think, switch in ((None, {}), (False, {"enable_thinking": False}), ("low", {"enable_thinking": True})):
            talker.whole(think=think)
            assert talker.asked.template_options == switch


def test_think_where_there_is_none(plain: Talker) -> None:
    assert plain.whole(think=False)["message"]["content"] == "ok"
    assert plain.refused(think=True) == "m does not support thinking; leave think out"
    assert plain.refused(think="banana") == "think is 'banana'; expected true, false, low, medium, high"


def test_options_reach_the_model() -> None:
    options = {
        "temperature": 0,
        "top_k": 40.0,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 7,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "stop": ["ri"],
        "num_predict": 9,
    }
    with talking("Paris", PlainTalk) as talker:
        answer = talker.whole(options=options)
        asked = talker.asked
        talker.whole(options={"seed": -1, "top_k": -1})
        unset = talker.asked
    assert (answer["message"]["content"], answer["done_reason"]) == ("Pa", "stop")
    assert asked.sampling == {
        "temperature": 0.0,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 7,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
    }
    assert (asked.stop, asked.max_tokens, unset.sampling) == (("ri",), 9, {"top_k": 0})


def test_what_is_ignored_is_said(plain: Talker) -> None:
    response = plain.post(options={"num_gpu": 1, "mirostat": 2, "num_ctx": 8192, "seed": 1}, shift=True)
    fits = plain.post(options={"num_ctx": 256}, keep_alive="5m")
    warning = response.headers["x-freehold-warning"]
    assert warning == (
        "options ignored: mirostat, num_gpu; num_ctx is 8192, but 256 tokens is the context that is loaded"
    )
    assert response.headers["x-freehold-ignored"] == "shift"
    assert "x-freehold-warning" not in fits.headers


def test_format_binds_the_answer(plain: Talker) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    grammars = []
    for format in (None, "", "json", schema):
        plain.whole(format=format)
        grammars.append(plain.asked.answer)
    assert "format is 'xml'" in plain.refused(format="xml")
    where = "format"
    assert grammars == [None, None, Grammar("json", where=where), Grammar("json_schema", schema, where=where)]


@pytest.mark.parametrize("keep_alive", [None, "5m", "1h30m", "-1", -1, 300, 2.5, "10"])
def test_a_request_that_says_nothing_loads_the_model(plain: Talker, keep_alive: Any) -> None:
    n_steps = plain.model.script.steps
    for path, nothing in (("/api/generate", {"prompt": ""}), ("/api/chat", {"messages": []})):
        answer = plain.whole(path, keep_alive=keep_alive, **nothing)
        assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert [part.done_reason for part in plain.ollama.generate("m", stream=True)] == ["load"]
    assert plain.model.script.steps == n_steps


def test_a_model_that_is_always_there_is_not_unloaded(plain: Talker) -> None:
    for none in (0, "0", "0s"):
        assert "kept in memory" in plain.refused("/api/generate", 403, prompt="", keep_alive=none)
    assert "keep_alive is 'soon'" in plain.refused(keep_alive="soon")


def test_raw_prompts_are_the_clients_own() -> None:
    with talking("Paris", PlainTalk) as talker:
        answer = talker.whole("/api/generate", raw=True, prompt="<|im_end|>ab", options={"num_predict": 2})
        assert answer["prompt_eval_count"] == 4  # BOS, <|im_end|> as one token, a, b
        assert answer["response"] == "cd"  # a prompt without roles counts upwards
        beside: list[dict[str, Any]] = [{"system": "x"}, {"think": True}, {"format": "json"}]
        for field in beside:
            assert "beside raw" in talker.refused("/api/generate", raw=True, **field)


def test_what_is_refused(plain: Talker) -> None:
    values: dict[str, Any] = {"images": ["aGk="], "suffix": "x", "template": "{{ .Prompt }}", "context": [1]}
    for name, value in values.items():
        given: dict[str, Any] = {name: value}
        assert plain.refused("/api/generate", **given).startswith(f"{name} is not supported: ")
        empty: dict[str, Any] = {name: type(value)()}
        assert plain.whole("/api/generate", **empty)["done"]
    error = plain.refused(messages=[{"role": "user", "content": "?", "images": ["aGk="]}])
    assert error == "messages[0] has images; text is all this runtime reads"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"messages": [{"role": "robot", "content": "?"}]}, "messages[0].role is 'robot'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content is 5"),
        ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "messages[0].tool_calls[0] is 5"),
        ({"messages": 5}, "messages is 5"),
        ({"options": {"temperature": 3}}, "options.temperature is 3"),
        ({"options": {"top_k": 1.5}}, "options.top_k is 1.5"),
        ({"options": {"num_predict": -3}}, "options.num_predict is -3"),
        ({"options": {"stop": ["x"] * 10_000}}, "options.stop is a list"),
        ({"top_logprobs": 2_000_000_000, "logprobs": True}, "top_logprobs is 2000000000"),
        ({"model": ""}, 'model is ""'),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "the prompt is 303 tokens; the context is 256"),
    ],
)
def test_wrong_fields_are_named(plain: Talker, body: dict[str, Any], error: str) -> None:
    assert plain.refused(**body).startswith(error)


def test_unknown_models(plain: Talker) -> None:
    assert "no model 'n'" in plain.refused(status=404, model="n")
    with pytest.raises(ollama.ResponseError, match="no model 'other'") as found:
        plain.ollama.chat("other", ASK)
    assert found.value.status_code == 404
    for name in ("m", "M", "m:latest"):
        assert plain.whole(model=name)["model"] == name


def test_bodies_that_are_not_json(plain: Talker) -> None:
    for content in (b"", b"{", b"[]", b"\xff"):
        response = plain.http.post("/api/chat", content=content)
        assert (response.status_code, response.json().keys()) == (400, {"error"})

"""Scripted models behind OpenAI's endpoints, and what a stream of chunks adds up to, for the tests of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, cast

import httpx
import openai

from freehold.server import openai_chat, openai_completions, openai_models
from scripted_model import ASSISTANT, EOS, HarmonyTalk, RealHarmony, RoleTemplate, ScriptedLocalModel, scripted
from served import served

ENDPOINTS = (*openai_chat.ENDPOINTS, *openai_completions.ENDPOINTS, *openai_models.ENDPOINTS)
Talk = Callable[..., "Talker"]
ASK: list[Any] = [{"role": "user", "content": "?"}]


def says(
    answer: Any, *, chat_format: type[RoleTemplate] | type[RealHarmony] = HarmonyTalk, **options: Any
) -> ScriptedLocalModel:
    """A model that answers so, without a prefix cache, so that a second request counts as the first did."""
    return scripted(answer, chat_format=chat_format, prefix_cache=False, **options)


def prefers(model: ScriptedLocalModel, *answers: Any) -> None:
    """Let the model say the first of these that what it was made to say so far agrees with."""
    written = [list(answer.encode() if isinstance(answer, str) else answer) for answer in answers]

    def next_id(history: list[int]) -> int:
        said = history[len(history) - history[::-1].index(ASSISTANT) :]
        return next((ids[len(said)] for ids in written if ids[: len(said)] == said and len(said) < len(ids)), EOS)

    model.script._next = next_id  # type: ignore[method-assign]


def prompt_of(talker: Talker) -> list[int]:
    """The prompt that a RealHarmony rendered last."""
    return cast(RealHarmony, talker.model.chat_format).prompt


def text_of(ids: Sequence[int]) -> bytes:
    """Ids as text, control tokens left out."""
    return bytes(id for id in ids if id < 256)


@contextmanager
def shared_talkers() -> Iterator[Talk]:
    """A function that gives a server whose model answers so; one server for each chat format, kept until the end."""
    with ExitStack() as stack:
        kept: dict[type[Any], Talker] = {}

        def talk(answer: Any, chat_format: type[Any] = HarmonyTalk) -> Talker:
            if chat_format not in kept:
                kept[chat_format] = stack.enter_context(talking("", chat_format=chat_format, context=2048))
            talker = kept[chat_format]
            talker.model.script.answer = answer
            return talker

        yield talk


@contextmanager
def talking(answer: Any, **options: Any) -> Iterator[Talker]:
    """A server with one model that answers so."""
    with talking_models({"m": says(answer, **options)}) as talker:
        yield talker


@contextmanager
def talking_models(models: Mapping[str, ScriptedLocalModel]) -> Iterator[Talker]:
    with served(models, ENDPOINTS) as url, Talker(url, models) as talker:
        yield talker


class Talker:
    """A server's address, its models, OpenAI's own client of it and a plain one."""

    def __init__(self, url: str, models: Mapping[str, ScriptedLocalModel]) -> None:
        self.url = url
        self.model = next(iter(models.values()))
        self.http = httpx.Client(base_url=url, timeout=20, verify=False, trust_env=False)

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    @cached_property
    def openai(self) -> openai.OpenAI:
        """Closed with the process: it holds nothing but idle connections to loopback."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20)

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        default = {"messages": ASK} if "chat" in path else {}
        return self.http.post(path, json={"model": "m", **default, **body})

    def whole(self, **body: Any) -> dict[str, Any]:
        """The answer that is not streamed."""
        response = self.post(**body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def chunks(self, **body: Any) -> list[dict[str, Any]]:
        """All chunks of a stream that ended as it must."""
        response = self.post(**body, stream=True, stream_options={"include_usage": True})
        assert response.status_code == 200, response.text
        lines = [line for line in response.text.split("\n\n") if line]
        assert lines.pop() == "data: [DONE]"
        assert all(line.startswith("data: ") for line in lines)
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    def both(self, **body: Any) -> dict[str, Any]:
        """The answer that is not streamed, which the streamed one must equal."""
        answer, joined = self.whole(**body), joined_chunks(self.chunks(**body))
        assert stable(joined) == stable(answer)
        return answer


def stable(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer without what differs from one request to the next: ids and times."""
    kept = json.loads(json.dumps({k: v for k, v in answer.items() if k not in ("id", "created", "object")}))
    for choice in kept["choices"]:
        for call in choice["message"].get("tool_calls", ()):
            assert call.pop("id").startswith("call_")
    return dict(kept)


def joined_chunks(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a client makes of chunks, and that they keep to the protocol."""
    *parts, last = chunks
    assert last["choices"] == []
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in parts)
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    choices: dict[int, dict[str, Any]] = {}
    for chunk in parts:
        (piece,) = chunk["choices"]
        choice = choices.setdefault(piece["index"], {"message": None, "index": piece["index"], "logprobs": None})
        _add(choice, piece)
    heads = {key: last[key] for key in ("id", "created", "object", "model", "system_fingerprint", "usage")}
    return {**heads, "choices": [choices[number] for number in sorted(choices)]}


def joined_completion(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a client makes of the chunks of Completions."""
    *parts, last = chunks
    assert last["choices"] == []
    choices: dict[int, dict[str, Any]] = {}
    for chunk in parts:
        assert chunk["usage"] is None
        (piece,) = chunk["choices"]
        choice = choices.setdefault(piece["index"], {**piece, "text": "", "logprobs": None, "finish_reason": None})
        assert not choice["finish_reason"], "a chunk after the terminal one"
        choice["text"] += piece["text"]
        choice["finish_reason"] = piece["finish_reason"]
        for name, values in (piece["logprobs"] or {}).items():
            choice["logprobs"] = choice["logprobs"] or {}
            choice["logprobs"][name] = [*choice["logprobs"].get(name, ()), *values]
    return {**last, "choices": [choices[number] for number in sorted(choices)]}


def _add(choice: dict[str, Any], piece: Mapping[str, Any]) -> None:
    delta = dict(piece["delta"])
    if choice["message"] is None:
        assert delta == {"role": "assistant", "content": delta["content"]}
        choice["message"] = {**delta, "refusal": None}
        return
    assert "role" not in delta
    assert not choice.get("finish_reason"), "a chunk after the terminal one"
    message = choice["message"]
    for call in delta.pop("tool_calls", ()):
        _add_call(message.setdefault("tool_calls", []), dict(call))
    for key, text in delta.items():
        assert text
        message[key] = (message.get(key) or "") + text
    if piece["logprobs"]:
        shown = choice["logprobs"] or {"content": [], "refusal": None}
        choice["logprobs"] = {**shown, "content": shown["content"] + piece["logprobs"]["content"]}
    if piece["finish_reason"]:
        assert not piece["delta"]
        choice |= {key: value for key, value in piece.items() if key not in ("delta", "logprobs")}


def _add_call(calls: list[dict[str, Any]], call: dict[str, Any]) -> None:
    index = call.pop("index")
    if index == len(calls):
        assert set(call) == {"id", "type", call["type"]}
        assert {"arguments": "", "input": "", **call[call["type"]]}["arguments"] == ""
        calls.append(call)
        return
    assert index == len(calls) - 1
    (kind,) = call
    ((key, text),) = call[kind].items()
    calls[index][kind][key] += text

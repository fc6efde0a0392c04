"""Scripted models behind the Responses API, and what a stream of events adds up to: for the tests of the protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import openai

from freehold.server import openai_chat
from freehold.server.responses import endpoints
from freehold.server.responses_store import ResponseStore
from scripted_model import HarmonyTalk, RealHarmony, RoleTemplate, ScriptedLocalModel, scripted
from served import served

THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>It is sunny.<|return|>"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>'
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "get_weather", "parameters": CITY}
TEXT_KEYS = {"response.function_call_arguments": "arguments", "response.custom_tool_call_input": "input"}


@contextmanager
def responding(
    answer: Any,
    *,
    store: ResponseStore | None = None,
    chat_format: type[RoleTemplate] | type[RealHarmony] = HarmonyTalk,
    **options: Any,
) -> Iterator[Responder]:
    """A server with one model, "m", that answers so; without a prefix cache, so that every request counts the same."""
    model = scripted(answer, chat_format=chat_format, prefix_cache=False, **options)
    with served({"m": model}, (*endpoints(store), *openai_chat.ENDPOINTS)) as url, Responder(url, model) as responder:
        yield responder


class Responder:
    """A server's address, its model, OpenAI's own client of it and a plain one."""

    def __init__(self, url: str, model: ScriptedLocalModel) -> None:
        self.url = url
        self.model = model
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)
        self.http = httpx.Client(base_url=url, timeout=20)

    def __enter__(self) -> Responder:
        return self

    def __exit__(self, *_: object) -> None:
        self.openai.close()
        self.http.close()

    def post(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/responses", json={"model": "m", "input": "?", **body})

    def whole(self, **body: Any) -> dict[str, Any]:
        response = self.post(**body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def refused(self, **body: Any) -> dict[str, Any]:
        """The error of a request that is refused."""
        response = self.post(**body)
        assert response.status_code == 400, response.text
        error: dict[str, Any] = response.json()["error"]
        return error

    def events(self, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, each under its own name."""
        response = self.post(**{**body, "stream": True})
        assert response.status_code == 200, response.text
        events = []
        for framed in response.text.removesuffix("\n\n").split("\n\n"):
            name, data = framed.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
        return events

    def both(self, **body: Any) -> dict[str, Any]:
        """The answer that is not streamed, which the streamed one must equal."""
        answer, streamed = self.whole(**body), added_up(self.events(**body))
        assert stable(streamed) == stable(answer)
        return answer


def stable(response: Mapping[str, Any]) -> dict[str, Any]:
    """A response without what differs from one request to the next: ids and times."""
    text = json.dumps({key: value for key, value in response.items() if not key.endswith("_at")})
    kept: dict[str, Any] = json.loads(text)
    assert kept.pop("id").startswith("resp_")
    turns = {item.pop("id").rpartition("_")[2][:24] for item in kept["output"]}
    assert len(turns) <= 1
    for item in kept["output"]:
        assert item.pop("call_id", "call_").startswith("call_")
    return kept


def added_up(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The response that a stream ends with; its events must say the same and keep to the protocol."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    created, started, *middle, last = events
    assert (created["type"], started["type"]) == ("response.created", "response.in_progress")
    assert created["response"] == started["response"]
    assert created["response"]["status"] == "in_progress"
    assert created["response"]["output"] == []
    response: dict[str, Any] = last["response"]
    assert last["type"] == f"response.{response['status']}"
    items = _items(middle)
    assert items == response["output"]
    changing = ("status", "completed_at", "incomplete_details", "output", "usage")
    assert {**created["response"], **{key: response[key] for key in changing}} == response
    return response


def _items(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items that events tell of, one after the other."""
    items: list[dict[str, Any]] = []
    remaining = list(events)
    while remaining:
        added = remaining.pop(0)
        assert (added["type"], added["output_index"]) == ("response.output_item.added", len(items))
        item = added["item"]
        assert item["status"] == "in_progress"
        end = next(i for i, event in enumerate(remaining) if event["type"] == "response.output_item.done")
        assert remaining[end]["output_index"] == len(items)
        done = remaining[end]["item"]
        _check_item(item, remaining[:end], done)
        items.append(done)
        del remaining[: end + 1]
    return items


def _check_item(added: Mapping[str, Any], events: Sequence[Mapping[str, Any]], done: Mapping[str, Any]) -> None:
    assert all((e["item_id"], e["output_index"]) == (added["id"], events[0]["output_index"]) for e in events)
    has_parts = added["type"] in ("message", "reasoning")
    if has_parts:
        assert events[0]["type"] == "response.content_part.added"
        assert events[0]["part"] == {**done["content"][0], "text": "", **_no_logprobs(done["content"][0])}
        assert events[-1]["type"] == "response.content_part.done"
        assert events[-1]["part"] == done["content"][0]
        assert all(event["content_index"] == 0 for event in events)
        events = events[1:-1]
    *deltas, text_done = events
    stem = text_done["type"].removesuffix(".done")
    assert {event["type"] for event in deltas} <= {f"{stem}.delta"}
    assert all(event["delta"] for event in deltas)
    key = TEXT_KEYS.get(stem, "text")
    text = "".join(event["delta"] for event in deltas)
    assert text_done[key] == text
    if not has_parts:
        assert done == {**added, key: text, "status": done["status"]}
        return
    part = done["content"][0]
    assert part["text"] == text
    assert done == {**added, "content": [part], "status": done["status"]}
    if added["type"] == "message":
        joined = [logprob for event in deltas for logprob in event["logprobs"]]
        assert text_done["logprobs"] == part["logprobs"] == joined


def _no_logprobs(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"logprobs": []} if "logprobs" in part else {}

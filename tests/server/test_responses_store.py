"""Stored responses: continued, referred to, fetched, forgotten; bounded, and each namespace by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.server.responses_items import MessageItem
from freehold.server.responses_store import ResponseStore, StoredItem, StoredResponse, StoreLimits
from freehold.text.chat import Message, ToolCall
from responses_scripted import CALL, FINAL, THOUGHT, WEATHER, Responder, responding
from scripted_model import harmony


def item(text: str, id: str = "msg_1") -> StoredItem:
    return StoredItem.of(MessageItem(role="user", content=text), {"id": id, "text": text})


def stored(id: str, *items: StoredItem) -> StoredResponse:
    return StoredResponse({"id": id}, items, ())


def test_what_was_used_last_stays() -> None:
    store = ResponseStore(StoreLimits(max_responses=2))
    for id in "ab":
        store.put("", stored(id, item(id, id)))
    assert store.get("", "a") is not None
    store.put("", stored("c"))
    assert [store.get("", id) is not None for id in "abc"] == [True, False, True]
    assert store.item("", "b") is None


def test_what_conversations_share_is_counted_once() -> None:
    store = ResponseStore()
    shared = item("x" * 10_000)
    store.put("", stored("a", shared))
    alone = store.n_bytes
    assert alone > 10_000
    store.put("", stored("b", shared, item("y", "msg_2")))
    assert store.n_bytes < alone + 3_000
    assert store.delete("", "a")
    assert store.item("", "msg_1") is shared
    assert store.delete("", "b")
    assert not store.delete("", "b")
    assert (store.n_bytes, len(store), store.item("", "msg_1")) == (0, 0, None)


def test_what_does_not_fit_is_not_kept() -> None:
    store = ResponseStore(StoreLimits(max_bytes=5_000))
    store.put("", stored("a", item("x")))
    store.put("", stored("b", item("x" * 10_000, "msg_2")))
    assert store.get("", "a") is not None
    assert store.get("", "b") is None
    assert store.item("", "msg_2") is None


def test_age_ends_it() -> None:
    now = 0.0
    store = ResponseStore(StoreLimits(max_age=10), clock=lambda: now)
    store.put("", stored("a", item("x")))
    now = 10.0
    assert store.get("", "a") is not None
    now = 10.5
    assert store.item("", "msg_1") is None
    assert len(store) == 0


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "get", "delete"]), st.sampled_from("pq"), st.sampled_from("abcdef")), max_size=40
)


@settings(max_examples=80, deadline=None)
@given(STEPS, st.integers(1, 5), st.integers(1_000, 12_000))
def test_bounds_hold_and_nothing_is_lost_count_of(steps: Any, max_responses: int, max_bytes: int) -> None:
    store = ResponseStore(StoreLimits(max_responses, max_bytes))
    shared = [item("s" * 100 * n, f"msg_{n}") for n in range(4)]
    for step, (action, namespace, id) in enumerate(steps):
        if action == "put":
            store.put(namespace, stored(id, *shared[: step % 5], item("own", f"own_{step}")))
        elif action == "get":
            found = store.get(namespace, id)
            assert found is None or found.response["id"] == id
        else:
            store.delete(namespace, id)
        assert len(store) <= max_responses
        assert 0 <= store.n_bytes <= max_bytes
    for namespace in "pq":
        for id in "abcdef":
            store.delete(namespace, id)
    assert (store.n_bytes, len(store)) == (0, 0)
    assert all(store.item(namespace, each.id) is None for namespace in "pq" for each in shared)


@pytest.fixture
def server() -> Iterator[Responder]:
    with responding(harmony(THOUGHT + CALL)) as responder:
        yield responder


def messages(server: Responder) -> list[Message]:
    seen: list[Message] = server.model.chat_format.messages  # type: ignore[union-attr]
    return seen


def test_a_response_is_continued_with_all_it_said(server: Responder) -> None:
    first = server.whole(instructions="Be brief.", tools=[WEATHER])
    call = first["output"][1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    second = server.whole(input=[result], previous_response_id=first["id"], tools=[WEATHER])
    assert second["previous_response_id"] == first["id"]
    turn = Message("assistant", "", "Let me see.", (ToolCall("get_weather", '{"city":"Rome"}', call["call_id"]),))
    answered = Message("tool", "sunny", tool_call_id=call["call_id"])
    assert messages(server) == [Message("user", "?"), turn, answered]
    assert server.http.delete(f"/v1/responses/{first['id']}").status_code == 200
    server.whole(input="And?", previous_response_id=second["id"], instructions="Be kind.")
    assert messages(server)[:2] == [Message("system", "Be kind."), Message("user", "?")]
    assert len(messages(server)) == 6


def test_a_stream_is_stored_before_its_end_is_told(server: Responder) -> None:
    first = server.events(tools=[WEATHER])[-1]["response"]
    assert server.http.get(f"/v1/responses/{first['id']}").json() == first
    server.whole(input="!", previous_response_id=first["id"])
    assert [message.role for message in messages(server)] == ["user", "assistant", "user"]


def test_items_are_referred_to(server: Responder) -> None:
    first = server.whole(tools=[WEATHER])
    thought, call = first["output"]
    items: list[Any] = [{"role": "user", "content": "?"}, {"type": "item_reference", "id": thought["id"]}]
    items += [{"id": call["id"]}, {"type": "function_call_output", "call_id": call["call_id"], "output": "5"}]
    server.whole(input=items, store=False)
    assert messages(server)[1].reasoning == "Let me see."
    assert messages(server)[1].tool_calls[0].id == call["call_id"]


def test_what_is_not_to_be_stored_is_not(server: Responder) -> None:
    response = server.whole(store=False)
    assert response["store"] is False
    assert server.http.get(f"/v1/responses/{response['id']}").status_code == 404


def test_what_is_not_there_is_not_found(server: Responder) -> None:
    error = server.refused(previous_response_id="resp_x")
    assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")
    assert "'resp_x' not found" in error["message"]
    missing = server.post(input=[{"type": "item_reference", "id": "rs_x"}])
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "input[0].id")
    one = "/v1/responses/resp_x"
    for method, path in (("GET", one), ("DELETE", one), ("GET", f"{one}/input_items"), ("POST", f"{one}/cancel")):
        assert server.http.request(method, path).status_code == 404


def test_a_response_is_fetched_and_forgotten(server: Responder) -> None:
    response = server.whole(metadata={"a": "b"})
    one = f"/v1/responses/{response['id']}"
    assert server.http.get(one).json() == response
    assert server.http.get(one, params={"stream": "true"}).status_code == 400
    cancelled = server.http.post(f"{one}/cancel")
    assert cancelled.status_code == 400
    assert "background" in cancelled.json()["error"]["message"]
    assert server.http.delete(one).json() == {"id": response["id"], "object": "response", "deleted": True}
    assert server.http.get(one).status_code == 404


def test_input_items_come_in_pages(server: Responder) -> None:
    first = server.whole(input=[{"role": "user", "content": text} for text in "abc"])
    response = server.whole(input="d", previous_response_id=first["id"])

    def page(**query: Any) -> httpx.Response:
        return server.http.get(f"/v1/responses/{response['id']}/input_items", params=query)

    whole = page(order="asc").json()
    assert [entry["type"] for entry in whole["data"]] == ["message"] * 3 + ["reasoning", "function_call", "message"]
    assert whole["data"][0]["content"] == [{"type": "input_text", "text": "a"}]
    assert whole["data"][3:5] == first["output"]
    assert (whole["has_more"], whole["first_id"]) == (False, whole["data"][0]["id"])
    assert page().json()["data"] == whole["data"][::-1]
    start = page(order="asc", limit=2).json()
    assert (start["data"], start["has_more"]) == (whole["data"][:2], True)
    assert page(order="asc", after=start["last_id"]).json()["data"] == whole["data"][2:]
    assert page(order="asc", after=whole["last_id"]).json()["data"] == []
    assert [page(**wrong).status_code for wrong in ({"limit": 0}, {"limit": "x"}, {"order": "up"}, {"after": "x"})] == [
        400,
        400,
        400,
        404,
    ]


def test_one_namespace_does_not_find_what_another_said() -> None:
    store = ResponseStore()
    store.put("theirs", stored("resp_1", item("secret", "msg_9")))
    with responding(harmony(FINAL), store=store) as server:
        assert server.http.get("/v1/responses/resp_1").status_code == 404
        assert server.http.delete("/v1/responses/resp_1").status_code == 404
        assert server.refused(previous_response_id="resp_1")["code"] == "previous_response_not_found"
        assert server.post(input=[{"type": "item_reference", "id": "msg_9"}]).status_code == 404
    assert store.get("theirs", "resp_1") is not None

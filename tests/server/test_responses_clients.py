"""The Responses API as its clients use it: OpenAI's own SDK, and requests as Codex 0.169 makes them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from responses_scripted import CALL, FINAL, THOUGHT, WEATHER, responding, stable
from scripted_model import PlainTalk, harmony


class City(BaseModel):
    name: str
    people: int


def by_turn(prompt: str) -> bytes | list[int]:
    """Calls the tool first; once there is a result, answers."""
    return harmony(THOUGHT + (FINAL if "sunny" in prompt else CALL))


def test_create() -> None:
    with responding(harmony(THOUGHT + FINAL)) as server:
        response = server.openai.responses.create(model="m", input="?")
    assert response.output_text == "It is sunny."
    thought = response.output[0]
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "Let me see."
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 0


def test_stream() -> None:
    with responding(harmony(THOUGHT + FINAL)) as server:
        events = list(server.openai.responses.create(model="m", input="?", stream=True))
        whole = server.whole()
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert (thought, said) == ("Let me see.", "It is sunny.")
    last = events[-1]
    assert last.type == "response.completed"
    assert stable(json.loads(last.response.to_json()))["output"] == stable(whole)["output"]


def test_the_stream_helper_adds_up_the_same() -> None:
    preamble = "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant"
    with responding(harmony(THOUGHT + preamble + CALL)) as server:
        tool: Any = {**WEATHER, "strict": True}
        with server.openai.responses.stream(model="m", input="?", tools=[tool]) as stream:
            snapshots = [e.snapshot for e in stream if e.type == "response.function_call_arguments.delta"]
            final = stream.get_final_response()
    assert snapshots[-1] == '{"city":"Rome"}'
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    call = final.output[2]
    assert call.type == "function_call"
    assert call.parsed_arguments == {"city": "Rome"}


def test_parse() -> None:
    with responding('{"name":"Rome","people":3}', chat_format=PlainTalk) as server:
        parsed = server.openai.responses.parse(model="m", input="?", text_format=City)
        with server.openai.responses.stream(model="m", input="?", text_format=City) as stream:
            streamed = stream.get_final_response()
        answer = server.model.asked.answer
    assert parsed.output_parsed == streamed.output_parsed == City(name="Rome", people=3)
    assert answer is not None
    assert (answer.kind, answer.strict) == ("json_schema", True)


@pytest.mark.parametrize("stored", [True, False])
def test_a_loop_of_tools(stored: bool) -> None:
    with responding(by_turn, context=2000) as server:
        create = server.openai.responses.create
        tools: Any = [WEATHER]
        response = create(model="m", input="?", tools=tools, store=stored)
        call = response.output[1]
        assert call.type == "function_call"
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        if stored:
            last = create(model="m", input=[result], previous_response_id=response.id, tools=tools)
        else:
            items: Any = [{"role": "user", "content": "?"}, *response.output, result]
            last = create(model="m", input=items, tools=tools, store=False)
    assert last.output_text == "It is sunny."


def test_stored_responses() -> None:
    with responding(harmony(FINAL)) as server:
        responses = server.openai.responses
        response = responses.create(model="m", input="?")
        assert responses.retrieve(response.id) == response
        (listed,) = responses.input_items.list(response.id)
        assert listed.type == "message"
        with pytest.raises(openai.BadRequestError, match="background"):
            responses.cancel(response.id)
        responses.delete(response.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            responses.retrieve(response.id)


def test_errors_are_the_clients_own() -> None:
    with responding(harmony(FINAL)) as server:
        create = server.openai.responses.create
        with pytest.raises(openai.NotFoundError):
            create(model="n", input="?")
        with pytest.raises(openai.BadRequestError) as caught:
            create(model="m", input="?", previous_response_id="resp_x", stream=True)
    assert caught.value.code == "previous_response_not_found"


CODEX: dict[str, Any] = {
    "model": "m",
    "stream": True,
    "tools": [
        {
            "type": "function",
            "name": "exec_command",
            "description": "Runs a command.",
            "strict": False,
            "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]},
        },
        {
            "type": "namespace",
            "name": "multi_agent_v1",
            "description": "Tools for sub-agents.",
            "tools": [{"type": "function", "name": "close_agent", "strict": False, "parameters": {"type": "object"}}],
        },
        {"type": "web_search", "external_web_access": True},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a211f9",
    "client_metadata": {"session_id": "01a211f9"},
}
CODEX_INPUT: list[dict[str, Any]] = [
    {
        "type": "message",
        "id": "msg_6ab6",
        "role": "developer",
        "content": [{"type": "input_text", "text": "You code."}],
    },
    {"type": "message", "id": "msg_01a2", "role": "user", "content": [{"type": "input_text", "text": "List."}]},
]


def test_the_turns_of_codex() -> None:
    """Every item of the answer goes back as Codex sends it, with what its tools said."""
    call = '<|channel|>commentary to=functions.exec_command <|constrain|>json<|message|>{"cmd":"ls"}<|call|>'
    close = "<|channel|>commentary to=functions.multi_agent_v1__close_agent <|constrain|>json<|message|>{}<|call|>"

    def answer(prompt: str) -> bytes | list[int]:
        turn = FINAL if "closed" in prompt else close if "a.txt" in prompt else call
        return harmony(THOUGHT + turn)

    items = [*CODEX_INPUT]
    done: list[dict[str, Any]] = []
    with responding(answer, context=2000) as server:
        for result in ("a.txt", "closed", None):
            events = server.events(**CODEX, input=items)
            assert events[-1]["type"] == "response.completed"
            done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
            items = [*items, *({**item, "encrypted_content": None} for item in done if item["type"] == "reasoning")]
            items += [item for item in done if item["type"] != "reasoning"]
            if result is not None:
                made = done[-1]["call_id"]
                items += [{"type": "function_call_output", "id": "fco_1", "call_id": made, "output": result}]
        seen = server.model.chat_format.messages  # type: ignore[union-attr]
    assert done[-1]["content"][0]["text"] == "It is sunny."
    assert [message.role for message in seen] == ["developer", "user", "assistant", "tool", "assistant", "tool"]
    assert [message.reasoning for message in seen if message.role == "assistant"] == ["Let me see.", "Let me see."]
    assert items[6]["namespace"] == "multi_agent_v1"
    assert seen[4].tool_calls[0].name == "multi_agent_v1__close_agent"

"""Scripted models behind the Messages API: what its tests serve, and a look at what reached the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import anthropic

from freehold.server.anthropic import ENDPOINTS
from freehold.server.endpoint import Endpoint
from freehold.text.chat import Message
from freehold.text.request import ChatRequest
from scripted_model import (
    ASSISTANT,
    BOS,
    EOS,
    SYSTEM,
    USER,
    HarmonyRoles,
    RoleTemplate,
    ScriptedLocalModel,
    harmony,
    scripted,
)
from served import served

WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris"}<|call|>'
THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is sunny.<|return|>"


class _Recorded(RoleTemplate):
    """Remembers the requests, and writes tools, calls and results as text. Nothing binds the answer unless told so."""

    binds = False

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[ChatRequest] = []

    def grammar(self, request: ChatRequest, prompt: Sequence[int] = ()) -> str | None:
        self.requests.append(request)
        return super().grammar(request, prompt)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **options: Any) -> list[int]:
        super().render([], **options)  # refuses what it does not know
        self.messages, self.options = list(messages), options
        roles = {"system": SYSTEM, "assistant": ASSISTANT}
        ids = [BOS, *repr(options.get("tools")).encode()]
        for message in messages:
            text = "".join(f"{call.name}{call.arguments}" for call in message.tool_calls)
            ids += [roles.get(message.role, USER), *f"{message.reasoning or ''}{message.content}{text}".encode()]
            ids += [EOS] if message.role == "assistant" else []
        return [*ids, ASSISTANT]


class Plain(_Recorded):
    """A model that can do nothing but answer."""


class Harmonious(_Recorded, HarmonyRoles):
    """One that thinks and calls tools."""


class Served:
    """A server with one model of each kind, and clients of it."""

    def __init__(self, url: str, plain: ScriptedLocalModel, thinker: ScriptedLocalModel) -> None:
        self.url = url
        self.plain = plain
        self.thinker = thinker
        self.client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)

    def says(self, text: str, *, bound: bool = False) -> None:
        """What the thinker answers from now on, control tokens by name; `bound`, what the grammar lets it of that."""
        self.thinker.script.answer = harmony(text)
        self._format.binds = bound

    @property
    def _format(self) -> Harmonious:
        return cast(Harmonious, self.thinker.chat_format)

    @property
    def requests(self) -> list[ChatRequest]:
        """What reached the thinker."""
        return self._format.requests

    @property
    def messages(self) -> list[Message]:
        """The conversation that the thinker was shown last."""
        return list(self.requests[-1].messages)


@contextmanager
def messages_api(endpoints: Sequence[Endpoint] = ENDPOINTS, *, context: int = 2048) -> Iterator[Served]:
    plain = scripted("Paris", context=context, chat_format=Plain)
    thinker = scripted(THOUGHT, context=context, chat_format=Harmonious)
    with served({"plain": plain, "thinker": thinker}, endpoints) as url:
        yield Served(url, plain, thinker)

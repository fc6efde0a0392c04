"""The server as client programs meet it: all its endpoints, gpt-oss's own chat format, and a script instead of weights.

Prompts are rendered, calls are bound by their grammars and answers are parsed as for the real model; only which token
comes next is the test's choice. What a program sent is kept, so that a test can say what it must have been.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freehold.hub.catalog import find_entry
from freehold.runtime import LocalModel
from freehold.server.app import create_app
from freehold.server.endpoints import all_endpoints
from freehold.server.metrics import Metrics
from freehold.server.pool import ModelPool
from freehold.server.service import Service
from freehold.server.source import Footprint, ModelSource
from freehold.text.chat import Message as Said
from freehold.text.harmony import Harmony
from freehold.text.tokenizer import Tokenizer
from scripted_model import ASSISTANT, HarmonyByteTokenizer, harmony, scripted
from served import running

MODEL = "gpt-oss-20b"
THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"

Script = Callable[[str], str]
"""From a prompt to the answer, in harmony with its control tokens by name."""


class MarkedHarmony(Harmony):
    """gpt-oss's format over bytes, the end of each prompt marked for the scripted model."""

    def __init__(self) -> None:
        super().__init__(cast(Tokenizer, HarmonyByteTokenizer()))

    def render(self, messages: Sequence[Said], *, add_generation_prompt: bool = True, **options: Any) -> list[int]:
        ids = super().render(messages, add_generation_prompt=add_generation_prompt, **options)
        return [*ids, ASSISTANT] if add_generation_prompt else ids


class _OneModel:
    """A server.source.Loader of one model, under all the names that the catalogue has for it."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def sources(self) -> Sequence[ModelSource]:
        entry = find_entry(MODEL)
        assert entry is not None
        return [ModelSource(MODEL, entry.aliases, 1_700_000_000, 1000, "safetensors")]

    def measure(self, source: ModelSource) -> Footprint:
        return Footprint()

    def load(self, source: ModelSource, budget: int | None, alive: Callable[[], None]) -> LocalModel:
        return self._model


@dataclass
class Request:
    """What a program sent, and the status it was answered with; 0 while it runs."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytearray = field(default_factory=bytearray)
    status: int = 0
    answer: bytearray = field(default_factory=bytearray)

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw)
        return found


@dataclass
class ClientServer:
    """A server's address and what came there."""

    url: str
    requests: list[Request]
    prompts: list[str]

    def sent(self, path: str) -> list[dict[str, Any]]:
        """The bodies that were sent to a path."""
        return [request.body for request in self.requests if request.path == path]

    def refused(self) -> list[tuple[str, int, str]]:
        """Path, status and answer of what did not succeed."""
        return [(each.path, each.status, each.answer.decode()) for each in self.requests if each.status >= 400]


class _Recorder:
    """ASGI middleware that keeps requests."""

    def __init__(self, app: ASGIApp, kept: list[Request]) -> None:
        self._app = app
        self._kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(scope["method"], scope["path"], headers)
        self._kept.append(request)

        async def receiving() -> Message:
            message = await receive()
            request.raw += message.get("body", b"")
            return message

        async def sending(message: Message) -> None:
            request.status = message.get("status", request.status)
            request.answer += message.get("body", b"")
            await send(message)

        await self._app(scope, receiving, sending)


@contextmanager
def client_server(script: Script, *, context: int = 200_000) -> Iterator[ClientServer]:
    """Serve MODEL, which answers as `script` says; a program is served as `freehold serve` would."""
    prompts: list[str] = []

    def answer(prompt: str) -> Any:
        if not prompts or prompts[-1] != prompt:
            prompts.append(prompt)
        return harmony(script(prompt))

    model = scripted(answer, context=context, chat_format=MarkedHarmony)
    forward = model.script.forward
    # Programs ask for temperature 1, at which the script must still be certain.
    model.script.forward = lambda batch, kv: forward(batch, kv) * 100  # type: ignore[method-assign]
    service = Service(ModelPool(loader=_OneModel(model)), Metrics())
    requests: list[Request] = []
    with running(_Recorder(create_app(service, all_endpoints()), requests), service) as url:
        yield ClientServer(url, requests, prompts)

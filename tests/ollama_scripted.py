"""Scripted models behind Ollama's endpoints, with its own client and a plain one: for the tests of that protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import ollama

from freehold.server.ollama import ENDPOINTS
from freehold.text.request import ChatRequest
from scripted_model import HarmonyTalk, RoleTemplate, ScriptedLocalModel, harmony, scripted
from served import served

ASK: list[Any] = [{"role": "user", "content": "?"}]


class Talker:
    """A server's address, its models, Ollama's own client of it and a plain one."""

    def __init__(self, url: str, models: Mapping[str, ScriptedLocalModel]) -> None:
        self.url = url
        self.model = next(iter(models.values()))
        self.ollama = ollama.Client(url, timeout=20)
        self.http = httpx.Client(base_url=url, timeout=20)

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self.ollama.close()  # type: ignore[no-untyped-call]
        self.http.close()

    def says(self, answer: str | Sequence[int]) -> None:
        """What the model answers from now on; text is harmony with control tokens by name."""
        self.model.script.answer = harmony(answer) if isinstance(answer, str) else list(answer)

    @property
    def asked(self) -> ChatRequest:
        """The request that came to the model last."""
        return self.model.asked

    def post(self, path: str = "/api/chat", **body: Any) -> httpx.Response:
        default = {"messages": ASK} if path == "/api/chat" else {"prompt": "?"} if path == "/api/generate" else {}
        return self.http.post(path, json={"model": "m", **default, **body})

    def whole(self, path: str = "/api/chat", **body: Any) -> dict[str, Any]:
        response = self.post(path, stream=False, **body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def lines(self, path: str = "/api/chat", **body: Any) -> list[dict[str, Any]]:
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.text.endswith("\n")
        return [json.loads(line) for line in response.text.splitlines()]

    def refused(self, path: str = "/api/chat", status: int = 400, **body: Any) -> str:
        """The error of a request that must be refused, streamed or not."""
        for stream in (True, False):
            response = self.post(path, **{"stream": stream, **body})
            assert response.status_code == status, response.text
            assert response.headers["content-type"] == "application/json"
            assert response.json().keys() == {"error"}
        error: str = response.json()["error"]
        return error


def says(answer: Any, chat_format: type[RoleTemplate] = HarmonyTalk, **options: Any) -> ScriptedLocalModel:
    """A model that answers so; text is harmony with control tokens by name where it talks harmony."""
    if isinstance(answer, str) and chat_format is HarmonyTalk:
        answer = harmony(answer)
    return scripted(answer, chat_format=chat_format, **options)


@contextmanager
def talking(
    answer: str | bytes | Sequence[int] | Callable[[str], bytes],
    chat_format: type[RoleTemplate] = HarmonyTalk,
    **options: Any,
) -> Iterator[Talker]:
    """A server with one model, "m", that answers so."""
    models = {"m": says(answer, chat_format, **options)}
    with served(models, ENDPOINTS) as url, Talker(url, models) as talker:
        yield talker

"""OpenAI's older Completions: raw prompts, text or token ids, continued without any chat template.

Owns the fields of the protocol, its log-probabilities, and the running of several prompts as one request. A choice that
is not streamed is added up from the very events that the chunks are made of.
"""

from __future__ import annotations

import asyncio
import codecs
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from freehold.prepared import RawRequest
from freehold.server import openai_shapes as shapes
from freehold.server.body import ModelName, refuse
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.errors import ApiError
from freehold.server.service import MAX_ANSWERS, Ticket, finish_reason
from freehold.server.sse import DONE, EventStream, framed
from freehold.text.answer import Event, TokenLogprob

MAX_CHOICES = 128
"""Of one request: prompts times answers to each."""

MAX_LOGPROBS = 5

DEFAULT_TOKENS = 16
"""OpenAI's default for max_tokens, which clients of this old API rely on."""

_MOST_UNREAD = 64  # events of all prompts; a slow client holds the readers up here

_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_Prompt = Annotated[
    str | list[Any],
    WithJsonSchema(
        {"anyOf": [_TEXT, _IDS, *({"type": "array", "items": kind, "minItems": 1} for kind in (_TEXT, _IDS))]}
    ),
]
_REFUSED = {"suffix": "there is no filling in; ask for it in a chat", "chat_template": "a raw prompt has no template"}


class CompletionBody(shapes.SamplingFields):
    """What POST /v1/completions takes."""

    model: ModelName
    prompt: _Prompt = Field(description="Text or token ids, one prompt or several.")
    max_tokens: int | None = Field(
        None, ge=1, description=f"{DEFAULT_TOKENS} unless given; cut to what the context holds."
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = Field(None, description="Put the prompt before the answer.")
    best_of: int | None = Field(None, ge=1, le=MAX_ANSWERS, description="No other than n.")
    stream: bool | None = None
    stream_options: shapes.StreamOptions | None = None
    user: str | None = None


async def create(call: Call) -> Json | EventStream:
    """Continue each prompt n times."""
    body: CompletionBody = call.body
    requests = read_requests(body, call.namespace)
    tickets = [await call.accept(body.model, request) for request in requests]
    answer = Continuation(tickets, requests, body)
    if body.stream:
        return EventStream(answer.pieces(), partial(shapes.failure, call.request_id))
    return Json(await answer.whole())


def read_requests(body: CompletionBody, namespace: str) -> list[RawRequest]:
    """One request for each prompt. Raises ApiError 400 for what a body may not say."""
    refuse(body, _REFUSED)
    n = body.n or 1
    if body.best_of not in (None, n):
        raise ApiError(400, f"best_of is {body.best_of}; expected the same as n, which is {n}", param="best_of")
    prompts = _prompts(body.prompt)
    if not 0 < len(prompts) * n <= MAX_CHOICES:
        found = f"{len(prompts)} prompts with {n} answers each"
        raise ApiError(400, f"{found}; expected 1 to {MAX_CHOICES} answers in all", param="prompt")
    if body.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise ApiError(400, "echo is set, and a prompt is token ids; expected text to echo", param="echo")
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "echo and logprobs are both set; expected one of them", param="echo")
    sampling = shapes.sampling(body, body.logprobs)
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    return [RawRequest(prompt, tuple(body.stop or ()), max_tokens, sampling, None, namespace) for prompt in prompts]


def _prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """The prompts in the four spellings there are."""
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(each, str) for each in prompt):
        return list(prompt)
    listed = prompt if all(isinstance(each, list) for each in prompt) else [prompt]
    if not all(type(token) is int for ids in listed for token in ids):
        expected = "text or a list of token ids, or a list of such prompts of one kind"
        raise ApiError(400, f"prompt is a list of other things; expected {expected}", param="prompt")
    return listed


class Continuation:
    """All answers to all prompts of a request, as one object or as chunks."""

    def __init__(self, tickets: Sequence[Ticket], requests: Sequence[RawRequest], body: CompletionBody) -> None:
        self._tickets = tickets
        self._n = body.n or 1
        self._with_usage = shapes.wants_usage(body.stream_options)
        numbers = range(len(tickets) * self._n)
        echoes = [str(request.prompt) if body.echo else "" for request in requests]
        self._choices = [_Choice(number, echoes[number // self._n]) for number in numbers]
        self._finishes: list[list[Event]] = [[] for _ in tickets]
        self._head: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": tickets[0].created,
            "model": tickets[0].model,
            "system_fingerprint": shapes.fingerprint(tickets[0].model),
        }

    async def whole(self) -> dict[str, Any]:
        """The object that is not streamed."""
        async with aclosing(self._taken()) as taken:
            async for _ in taken:
                pass
        return {**self._head, "choices": [choice.whole() for choice in self._choices], "usage": self._usage()}

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The chunks of the stream."""
        head = {**self._head, "usage": None} if self._with_usage else self._head
        async with aclosing(self._taken()) as taken:
            async for choice in taken:
                yield framed({**head, "choices": [choice]})
        if self._with_usage:
            yield framed({**head, "choices": [], "usage": self._usage()})
        yield DONE

    async def _taken(self) -> AsyncGenerator[dict[str, Any], None]:
        """What the chunks say, as it comes."""
        async with aclosing(_merged(self._tickets, self._n)) as events:
            async for prompt, number, event in events:
                if event.kind == "finish":
                    self._finishes[prompt].append(event)
                yield self._choices[prompt * self._n + number].take(event)

    def _usage(self) -> dict[str, Any]:
        return shapes.summed([shapes.usage(finishes) for finishes in self._finishes])


async def _merged(tickets: Sequence[Ticket], n: int) -> AsyncGenerator[tuple[int, int, Event], None]:
    """(number of the prompt, number of the answer to it, event) of all, as they come."""
    arrived: asyncio.Queue[tuple[int, int, Event] | None] = asyncio.Queue(_MOST_UNREAD)

    async def read(prompt: int, ticket: Ticket) -> None:
        async with aclosing(ticket.events(n)) as events:
            async for number, event in events:
                await arrived.put((prompt, number, event))

    async def read_all() -> None:
        try:
            await asyncio.gather(*readers)
        finally:
            await arrived.put(None)

    readers = [asyncio.ensure_future(read(prompt, ticket)) for prompt, ticket in enumerate(tickets)]
    reading = asyncio.ensure_future(read_all())
    try:
        while (item := await arrived.get()) is not None:
            yield item
        await reading  # raises what a reader raised
    finally:
        for task in (reading, *readers):
            task.cancel()
        await asyncio.gather(reading, *readers, return_exceptions=True)


class _Choice:
    """One continuation in the making."""

    def __init__(self, number: int, echo: str) -> None:
        self._number = number
        self._unsaid = echo
        self._pieces: list[str] = []
        self._logprobs = _LegacyLogprobs()
        self._finish: str | None = None

    def take(self, event: Event) -> dict[str, Any]:
        """The choice of the chunk that says this event."""
        text, self._unsaid = self._unsaid + event.text, ""
        self._pieces.append(text)
        if event.kind == "finish":
            self._finish = finish_reason(event)
        return self._shaped(text, self._logprobs.add(event.logprobs) if event.logprobs else None)

    def whole(self) -> dict[str, Any]:
        """The choice that is not streamed."""
        return self._shaped("".join(self._pieces), self._logprobs.all if self._logprobs.all["tokens"] else None)

    def _shaped(self, text: str, logprobs: dict[str, list[Any]] | None) -> dict[str, Any]:
        return {"text": text, "index": self._number, "logprobs": logprobs, "finish_reason": self._finish}


class _LegacyLogprobs:
    """Tokens in parallel lists. `text_offset` counts characters from where the model's own text begins; a token that
    holds part of a character is named by its bytes, as in "bytes:\\xe2\\x82".
    """

    def __init__(self) -> None:
        self.all: dict[str, list[Any]] = _lists()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_chars = 0

    def add(self, logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """The lists of these tokens alone."""
        added = _lists()
        for each in logprobs:
            added["tokens"].append(_named(each.raw))
            added["token_logprobs"].append(_number(each.logprob))
            added["top_logprobs"].append({_named(raw): _number(logprob) for _, raw, logprob in each.top})
            added["text_offset"].append(self._n_chars)
            self._n_chars += len(self._decoder.decode(each.raw))
        for name, values in added.items():
            self.all[name] += values
        return added


def _lists() -> dict[str, list[Any]]:
    return {name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}


def _named(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _number(logprob: float) -> float:
    return max(logprob, shapes.LOWEST_LOGPROB)


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "POST",
        "/v1/completions",
        create,
        "Continue raw prompts",
        "OpenAI",
        body=CompletionBody,
        answers=("application/json", "text/event-stream"),
        statuses=(404, 429, 503, 504),
    ),
)

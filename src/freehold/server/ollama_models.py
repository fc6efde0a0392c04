"""The models that are served, as Ollama's API lists them; and what of that API changes models, which is refused.

Owns /api/tags, /api/ps, /api/show and /api/version. Lists load no model. Which models there are is decided on the
command line alone: nothing that a request says reaches a disk or another server.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field
from starlette.responses import Response

from freehold.errors import RequestError, TemplateError
from freehold.server.body import Body, ModelName
from freehold.server.endpoint import Call, Endpoint, Handler, Json
from freehold.server.errors import ApiError
from freehold.server.ollama_answer import timestamp
from freehold.server.resident import ModelCard
from freehold.server.sse import dumps
from freehold.text.chat import Message
from freehold.text.request import ChatFormat
from freehold.text.templates import ChatTemplate

API_VERSION = "0.13.5"
"""Of Ollama, whose API this is: clients look here for what they may use. Codex wants 0.13.4 for the Responses API, and
Copilot 0.6.4 for tools.
"""

_NEVER = "9999-12-31T23:59:59Z"


class ShowBody(Body):
    """What POST /api/show takes."""

    model: ModelName | None = None
    name: str | None = Field(None, max_length=512, description="The older name of model.")
    verbose: bool | None = None


class PullBody(Body):
    """What POST /api/pull takes."""

    model: ModelName | None = None
    name: str | None = Field(None, max_length=512, description="The older name of model.")
    stream: bool | None = Field(None, description="Answered as a line of JSON unless false.")
    insecure: bool | None = Field(None, description="Accepted, without effect.")


def way_to_think(chat_format: ChatFormat) -> Literal["levels", "switch"] | None:
    """How a format is told how much to think. It is asked, since it refuses an option that it lacks."""
    question = [Message("user", "?")]
    ways: dict[Literal["levels", "switch"], dict[str, Any]] = {
        "levels": {"reasoning_effort": "low"},
        "switch": {"enable_thinking": True},
    }
    for way, option in ways.items():
        with suppress(RequestError, TemplateError):
            chat_format.render(question, **option)
            return way
    return None


async def tags(call: Call) -> Json:
    """All models that can be asked for."""
    return Json({"models": [_listed(card) for card in call.service.pool.cards()]})


async def running(call: Call) -> Json:
    """The models in memory. None of it is video memory."""
    return Json({"models": [_loaded(card) for card in call.service.pool.cards() if card.loaded]})


async def show(call: Call) -> Json:
    """What is known of a model. Nothing is loaded for it; of one that is loaded, more is known."""
    card = call.service.pool.card(_named(call.body))
    chat_format = None
    if card.loaded:
        lease = await call.service.pool.lease(card.name)
        chat_format = lease.model.chat_format
        lease.release()
    arch = card.family or "unknown"
    info = {
        "general.architecture": arch,
        "general.basename": card.name,
        "general.parameter_count": card.n_parameters,
        f"{arch}.context_length": card.context,
    }
    answer = {
        "modelfile": f"# {card.name}, served by Freehold, which reads no Modelfile",
        "parameters": "",
        "template": chat_format.source if isinstance(chat_format, ChatTemplate) else "",
        "license": "",
        "details": _details(card),
        "model_info": {key: value for key, value in info.items() if value is not None},
        "capabilities": ["completion", *await asyncio.to_thread(_abilities, chat_format)],
        "modified_at": timestamp(card.created),
    }
    return Json(answer)


async def pull(call: Call) -> Response:
    """Nothing to do for a model that is here: clients pull what they are about to use. Others are not fetched."""
    body: PullBody = call.body
    name = _named(body)
    try:
        call.service.pool.resolve(name)
    except ApiError as error:
        raise ApiError(403, f"{error.message} {_PULL}", param="model") from None
    done = {"status": "success"}
    return Json(done) if body.stream is False else Response(dumps(done) + b"\n", media_type="application/x-ndjson")


async def version(call: Call) -> Json:
    """The version of Ollama's API that is answered."""
    return Json({"version": API_VERSION})


def _named(body: ShowBody | PullBody) -> str:
    name = body.model or body.name
    if name is None:
        raise ApiError(400, "model is missing; expected the name of a model", param="model")
    return name


def _abilities(chat_format: ChatFormat | None) -> list[str]:
    if chat_format is None:
        return []
    tools, thinking = _tells_of_tools(chat_format), way_to_think(chat_format) is not None
    return [name for name, has in (("tools", tools), ("thinking", thinking)) if has]


def _tells_of_tools(chat_format: ChatFormat) -> bool:
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
    question = [Message("user", "?")]
    try:
        return chat_format.render(question, tools=[tool]) != chat_format.render(question)
    except (RequestError, TemplateError):
        return False


def _listed(card: ModelCard) -> dict[str, Any]:
    name = card.name if ":" in card.name else f"{card.name}:latest"  # every name of Ollama's has a tag
    # Clients tell models apart by digests and cut them to 12 digits, so that there must be one.
    digest = card.digest or hashlib.sha256(f"{name}/{card.n_bytes}".encode()).hexdigest()
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(card.created),
        "size": card.n_bytes or 0,
        "digest": digest,
        "details": _details(card),
    }


def _loaded(card: ModelCard) -> dict[str, Any]:
    expires = _NEVER if card.expires is None else timestamp(card.expires)
    size = card.memory or card.n_bytes or 0
    return {**_listed(card), "size": size, "size_vram": 0, "expires_at": expires, "context_length": card.context or 0}


def _details(card: ModelCard) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": card.format or "",
        "family": card.family or "",
        "families": [card.family] if card.family else [],
        "parameter_size": _counted(card.n_parameters),
        "quantization_level": card.quantization or "",
    }


def _counted(n_parameters: int | None) -> str:
    """As Ollama writes it: 134.5M, 20.9B."""
    if not n_parameters:
        return ""
    return f"{n_parameters / 1e9:.1f}B" if n_parameters >= 1e9 else f"{n_parameters / 1e6:.1f}M"


def _refusing(status: int, message: str) -> Handler:
    async def refuse(call: Call) -> Json:
        raise ApiError(status, message)

    return refuse


_PULL = "Models are fetched on the server's own command line (freehold pull NAME), never for a request"
_BY_HAND = "this server changes no models for a request; see freehold pull, ls and rm on its own command line"
_EMBED = "this server answers in text and computes no embeddings; ask a server for embedding models"

_REFUSED = (
    Endpoint("POST", "/api/push", _refusing(403, _BY_HAND), "Refused: publish a model", "Ollama", statuses=(403,)),
    Endpoint("POST", "/api/create", _refusing(403, _BY_HAND), "Refused: make a model", "Ollama", statuses=(403,)),
    Endpoint("POST", "/api/copy", _refusing(403, _BY_HAND), "Refused: copy a model", "Ollama", statuses=(403,)),
    Endpoint("DELETE", "/api/delete", _refusing(403, _BY_HAND), "Refused: remove a model", "Ollama", statuses=(403,)),
    Endpoint("POST", "/api/blobs/{digest}", _refusing(403, _BY_HAND), "Refused: a file", "Ollama", statuses=(403,)),
    Endpoint("HEAD", "/api/blobs/{digest}", _refusing(403, _BY_HAND), "Refused: a file", "Ollama", statuses=(403,)),
    Endpoint("POST", "/api/embed", _refusing(400, _EMBED), "Refused: embeddings", "Ollama", statuses=(400,)),
    Endpoint("POST", "/api/embeddings", _refusing(400, _EMBED), "Refused: embeddings", "Ollama", statuses=(400,)),
)

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api/tags", tags, "The models that can be asked for", "Ollama"),
    Endpoint("GET", "/api/ps", running, "The models in memory", "Ollama"),
    Endpoint("GET", "/api/version", version, "The version of Ollama's API", "Ollama", public=True),
    Endpoint("POST", "/api/show", show, "What is known of a model", "Ollama", body=ShowBody, statuses=(404,)),
    Endpoint(
        "POST",
        "/api/pull",
        pull,
        "Nothing for a model that is here; refused for others",
        "Ollama",
        body=PullBody,
        answers=("application/x-ndjson", "application/json"),
        statuses=(403,),
    ),
    *_REFUSED,
)

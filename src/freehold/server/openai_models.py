"""/v1/models, a path that two protocols share: what can be asked for.

Owns OpenAI's shape of a model; clients that say that they speak Anthropic's API get that one's. Which models there are
is the pool's matter.
"""

from __future__ import annotations

from typing import Any

from freehold.server import anthropic
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.resident import ModelCard

_ANTHROPIC = "anthropic-version"  # the header that every client of that API sends


async def list_models(call: Call) -> Json:
    """Every model, loaded or not."""
    cards = call.service.pool.cards()
    if _ANTHROPIC in call.headers:
        return Json(anthropic.model_page(cards))
    return Json({"object": "list", "data": [_shaped(card) for card in cards]})


async def show_model(call: Call) -> Json:
    """One model, by any name that requests may use for it."""
    card = call.service.pool.card(call.path["model"])
    return Json(anthropic.model_info(card) if _ANTHROPIC in call.headers else _shaped(card))


def _shaped(card: ModelCard) -> dict[str, Any]:
    """OpenAI's fields, then our own: the context in tokens, the files' size in bytes; null where not known yet."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "freehold",
        "context_length": card.context,
        "size": card.n_bytes,
        "loaded": card.loaded,
        "aliases": list(card.aliases),
    }


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/v1/models", list_models, "List the models", "OpenAI"),
    Endpoint("GET", "/v1/models/{model:path}", show_model, "Show one model", "OpenAI", statuses=(404,)),
)

"""OpenAI's Models: what can be asked for.

Owns the shape of a model in lists; which models there are is the pool's matter.
"""

from __future__ import annotations

from typing import Any

from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.resident import ModelCard


async def list_models(call: Call) -> Json:
    """Every model, loaded or not."""
    return Json({"object": "list", "data": [_shaped(card) for card in call.service.pool.cards()]})


async def show_model(call: Call) -> Json:
    """One model, by any name that requests may use for it."""
    return Json(_shaped(call.service.pool.card(call.path["model"])))


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

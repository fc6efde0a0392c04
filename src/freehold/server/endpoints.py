"""All that the server answers, gathered from the files that answer it.

Owns nothing but the list.
"""

from __future__ import annotations

from freehold.server import (
    anthropic,
    health,
    ollama,
    openai_chat,
    openai_completions,
    openai_models,
    openapi,
    responses,
    tokens,
)
from freehold.server.endpoint import Endpoint


def all_endpoints(*, strip_volatile: bool = True) -> tuple[Endpoint, ...]:
    """Every endpoint, and the page that lists them.

    strip_volatile: leave out the line of Claude Code's system prompt that changes with each request.
    """
    gathered = [
        *openai_chat.ENDPOINTS,
        *openai_completions.ENDPOINTS,
        *openai_models.ENDPOINTS,
        *responses.endpoints(),
        *anthropic.endpoints(drop_billing_line=strip_volatile),
        *ollama.ENDPOINTS,
        *tokens.ENDPOINTS,
        *health.ENDPOINTS,
    ]
    gathered += openapi.described(gathered)  # which then describe themselves, and the page that lists them
    gathered.append(health.index(gathered))
    routes = [(endpoint.method, endpoint.path) for endpoint in gathered]
    assert len(routes) == len(set(routes)), "two files answer one route"
    return tuple(gathered)

"""How the server is doing: /health for whoever restarts it, /metrics for whoever watches it, / for whoever wonders.

Owns these answers. None of them generates, loads or waits, so they stay quick while models do.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import PlainTextResponse, Response

from freehold import __version__
from freehold.server.endpoint import Call, Endpoint, Json
from freehold.server.metrics import MEDIA_TYPE

GREETING = f"""\
Freehold {__version__} is running: open-weight language models on this machine, behind the APIs of OpenAI, Anthropic and
Ollama (what looks here for the words "Ollama is running" may go on).

"""


async def health(call: Call) -> Json:
    """200 while requests can be answered; 503 if the engine of a loaded model is dead or stuck, or the server ends."""
    if call.service.draining:
        return Json({"status": "shutting down"}, 503)
    problems = call.service.pool.problems()
    return Json({"status": "failed", "problems": problems}, 503) if problems else Json({"status": "ok"})


async def metrics(call: Call) -> Response:
    """Everything that is counted, for Prometheus."""
    return Response(call.service.metrics.render(), media_type=MEDIA_TYPE)


def index(endpoints: Sequence[Endpoint]) -> Endpoint:
    """The page at /, which lists all endpoints."""
    width = max(len(endpoint.path) for endpoint in endpoints)
    lines = [f"{endpoint.method:6} {endpoint.path:{width}}  {endpoint.summary}" for endpoint in endpoints]
    page = GREETING + "\n".join(lines) + "\n"

    async def greet(call: Call) -> Response:
        """What this is, and what there is."""
        return PlainTextResponse(page)

    return Endpoint("GET", "/", greet, "What this is", "Server", answers=("text/plain",), public=True)


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/health", health, "Whether requests can be answered", "Server", statuses=(503,), public=True),
    Endpoint("GET", "/metrics", metrics, "Counters for Prometheus", "Server", answers=("text/plain",)),
)

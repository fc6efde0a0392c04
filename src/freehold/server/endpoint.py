"""What a protocol file declares and what it is called with.

Owns Endpoint (a route, its body, its place in the documentation) and Call (one request as a handler sees it). Knows no
protocol; the handlers know no ASGI.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from starlette.responses import Response

from freehold.server.body import Body
from freehold.server.errors import ApiError, dialect_of, error_body
from freehold.server.sse import EventStream, dumps

if TYPE_CHECKING:
    from freehold.prepared import RawRequest
    from freehold.server.service import Service, Ticket
    from freehold.text.request import ChatRequest


@dataclass
class Call:
    """One request. `body` is what the endpoint declared, checked; `namespace` tells one API key's work from another's.

    warnings: said to the client in the header x-freehold-warning; a handler may add to them until it returns.
    """

    service: Service
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    namespace: str
    request_id: str
    warnings: list[str] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)

    async def accept(self, model: str, request: ChatRequest | RawRequest) -> Ticket:
        """As Service.accept; the ticket is closed with the call, whatever becomes of it."""
        ticket = await self.service.accept(model, request)
        self.tickets.append(ticket)
        if ticket.unenforced:
            self.warnings.append(f"left to the model, since it cannot be enforced: {', '.join(ticket.unenforced)}")
        return ticket


Handler = Callable[[Call], Awaitable[Response | EventStream]]


@dataclass(frozen=True)
class Endpoint:
    """A route. `answers` are its success media types; `statuses` the error statuses it may answer with, besides those
    that every route has.
    """

    method: Literal["GET", "POST", "HEAD", "DELETE"]
    path: str
    handle: Handler
    summary: str
    tag: str
    body: type[Body] | None = None
    answers: tuple[str, ...] = ("application/json",)
    statuses: tuple[int, ...] = ()
    public: bool = False  # answered without an API key, which health probes have not


class Json(Response):
    """A JSON response."""

    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(dumps(content), status, headers)


def error_answer(error: ApiError, path: str, request_id: str) -> Json:
    """The response that says an error, in the words of the protocol whose path it is."""
    ids = {"x-request-id": request_id, "request-id": request_id}  # the second is where Anthropic's clients look
    return Json(error_body(error, dialect_of(path), request_id), error.status, {**ids, **error.headers})

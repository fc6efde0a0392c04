"""What goes wrong with a request, as an HTTP status and in the words of each protocol.

Owns ApiError, the translation of Freehold's own errors into it, and the three shapes of an error body. What is the
server's own fault is told to the log only: the client gets a fixed text and the id to ask about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from freehold.errors import (
    ContextError,
    EngineError,
    FreeholdError,
    NotFoundError,
    RequestError,
    ResourceError,
    TemplateError,
    UnsupportedError,
)

Dialect = Literal["openai", "anthropic", "ollama"]

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error: HTTP status, message for the client, OpenAI's `code` and `param`, more headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def dialect_of(path: str) -> Dialect:
    """Whose error shape a path answers in."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"


def as_api_error(error: BaseException) -> ApiError:
    """The answer to an error, whatever it is. What the client did not cause says nothing of our insides."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, (RequestError, UnsupportedError, TemplateError)):
        return ApiError(400, str(error))
    if isinstance(error, NotFoundError):
        return ApiError(404, str(error), code="model_not_found")
    if isinstance(error, ResourceError):
        return ApiError(503, str(error), code="insufficient_memory")
    if isinstance(error, EngineError) and isinstance(error.__cause__, RequestError):
        return ApiError(400, str(error.__cause__))  # a grammar of the request, which could be followed no further
    if isinstance(error, EngineError):
        return ApiError(500, "the model failed on this request; the server's log says why", code="engine_error")
    if isinstance(error, FreeholdError):
        return ApiError(500, "the model could not be used; the server's log says why", code="model_error")
    return ApiError(500, "internal error; the server's log says more", code="internal_error")


def error_body(error: ApiError, dialect: Dialect, request_id: str) -> dict[str, Any]:
    """The JSON body of an error answer, in the shape of the protocol that was spoken."""
    message = error.message if error.status < 500 else f"{error.message} (request {request_id})"
    if dialect == "ollama":
        return {"error": message}
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    kind = _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": error.param, "code": error.code}}

"""Who may ask: the first and last thing that every request passes.

Owns the checks of Host and Origin, which keep web pages away from a server on this machine, API keys and the namespaces
they stand for, the ids of requests, and one line in the log for each, without prompts and keys. Pure ASGI: streams pass
at the cost of one call per message. Knows routes only as those that need no key.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freehold.errors import RequestError
from freehold.server.endpoint import error_answer
from freehold.server.errors import ApiError
from freehold.server.metrics import Metrics

log = logging.getLogger("freehold.server.access")

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

CLIENT_GONE = 499
"""The status in log and metrics of a request whose client left before there was an answer; never sent."""

_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
_EXPOSED = "x-request-id, x-freehold-warning, x-freehold-ignored, x-freehold-reasoning-effort, retry-after"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+/?", re.IGNORECASE)
_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^:@/\[\]\s]+))(?::\d*)?")
_Headers = list[tuple[bytes, bytes]]


class ApiKeys:
    """The keys that are accepted. Only their hashes are kept; a key's namespace is a hash of it too."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._known = [(_digest(key), _namespace(key)) for key in dict.fromkeys(_checked_key(key) for key in keys)]

    def __bool__(self) -> bool:
        return bool(self._known)

    def namespace(self, key: str) -> str | None:
        """The namespace of a key that is accepted, else None. Takes the same time for every wrong key."""
        digest, found = _digest(key), None
        for known, namespace in self._known:
            if hmac.compare_digest(known, digest):
                found = namespace
        return found


@dataclass(frozen=True)
class GuardRules:
    """hosts: the names a Host header may carry, without port; None allows any, for a server that others can reach.
    origins: those whose web pages may call the server, as browsers write them ("https://example.com"), or "*".
    keys: one of them is needed, unless there are none, except for the paths in `public`.
    """

    hosts: frozenset[str] | None = LOOPBACK_HOSTS
    origins: frozenset[str] = frozenset()
    keys: ApiKeys = field(default_factory=ApiKeys)
    public: frozenset[str] = frozenset()


class Guard:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, rules: GuardRules, metrics: Metrics) -> None:
        self._app = app
        self._rules = rules
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), CLIENT_GONE
        scope["freehold.request_id"] = request_id = new_request_id()
        head = _Head(scope)
        cors = self._cors_headers(head)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *cors]}
            await send(message)

        try:
            answer = self._answer(scope, head, request_id)
            await (self._app if answer is None else answer)(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - start
            self._metrics.requested(scope.get("freehold.endpoint", "other"), status, seconds)
            client = scope["client"][0] if scope.get("client") else "-"
            log.info("%s %s %d %.3f s %s %s", scope["method"], _path(scope), status, seconds, client, request_id)

    def _answer(self, scope: Scope, head: _Head, request_id: str) -> Response | None:
        """The response to a request that goes no further, None for one that may."""
        try:
            self._check_host(head)
            self._check_origin(head, scope["method"])
            if scope["method"] == "OPTIONS" and head.origin and head.one(b"access-control-request-method"):
                return Response(status_code=204, headers=_preflight(head))
            scope["freehold.namespace"] = self._namespace(head, scope["path"])
        except ApiError as error:
            return error_answer(error, scope["path"], request_id)
        return None

    def _check_host(self, head: _Head) -> None:
        hosts = self._rules.hosts
        if hosts is not None and (len(head.all(b"host")) != 1 or _host_name(head.host) not in hosts):
            raise ApiError(
                403,
                f"the Host header is {head.host[:100]!r}; this server answers to localhost and 127.0.0.1 only, so that "
                f"web pages cannot reach it under a name of their own (--host sets another)",
                code="host_not_allowed",
            )

    def _check_origin(self, head: _Head, method: str) -> None:
        """Refuse what a web page of another origin sends, whether or not it could read the answer."""
        if head.origin:
            if self._is_listed(head.origin) or _same_origin(head.origin, head.host):
                return
            shown = f"the web page at {head.origin[:100]!r}"
        else:
            # A page's images, scripts and forms: no Origin header, but browsers say where they come from. Following a
            # link is no harm.
            opened = head.one(b"sec-fetch-mode") == "navigate" and method == "GET"
            if opened or head.one(b"sec-fetch-site") not in ("cross-site", "same-site"):
                return
            shown = "a web page of another origin"
        raise ApiError(
            403, f"{shown} may not use this server; --cors-origin lists those that may", code="origin_not_allowed"
        )

    def _is_listed(self, origin: str) -> bool:
        return origin.lower() in self._rules.origins or "*" in self._rules.origins

    def _cors_headers(self, head: _Head) -> _Headers:
        """What lets a page of a listed origin read the answer, whatever it is."""
        if not self._rules.origins:
            return []
        vary = [(b"vary", b"Origin")]
        if not head.origin or not self._is_listed(head.origin):
            return vary
        allowed = head.origin.encode("latin-1")
        return [*vary, (b"access-control-allow-origin", allowed), (b"access-control-expose-headers", _EXPOSED.encode())]

    def _namespace(self, head: _Head, path: str) -> str:
        """Whose work this is. Raises ApiError 401 without an accepted key."""
        keys = self._rules.keys
        if not keys:
            return ""
        for key in head.api_keys():
            namespace = keys.namespace(key)
            if namespace is not None:
                return namespace
        if path in self._rules.public:
            return ""
        wrong = "the API key is not one of this server's" if head.api_keys() else "this server needs an API key"
        raise ApiError(
            401,
            f"{wrong}; send one as `Authorization: Bearer KEY` or `x-api-key: KEY`",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


class _Head:
    """The headers of a request, as the guard needs them."""

    def __init__(self, scope: Scope) -> None:
        self._headers: _Headers = scope["headers"]
        self.origin = self.one(b"origin")
        self.host = self.one(b"host")

    def all(self, name: bytes) -> list[str]:
        return [value.decode("latin-1").strip() for key, value in self._headers if key == name]

    def one(self, name: bytes) -> str:
        """The first value, empty if there is none."""
        return next(iter(self.all(name)), "")

    def api_keys(self) -> list[str]:
        """The API keys that were sent."""
        bearers = [value.split(None, 1) for value in self.all(b"authorization")]
        found = [words[1].strip() for words in bearers if len(words) == 2 and words[0].lower() == "bearer"]
        return [*found, *self.all(b"x-api-key")]


def new_request_id() -> str:
    """An id that no other request has."""
    return f"req_{secrets.token_hex(12)}"


def is_loopback(host: str) -> bool:
    """Whether a host to bind to, a name or an address, can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def allowed_hosts(host: str) -> frozenset[str] | None:
    """The rule for Host headers of a server that binds to `host`."""
    return LOOPBACK_HOSTS | {host.lower()} if is_loopback(host) else None


def checked_origins(origins: Sequence[str]) -> frozenset[str]:
    """Origins as browsers write them. Raises RequestError for what is none."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise RequestError(
                f"{origin!r} is no origin; expected scheme, host and port, as in https://example.com:8080"
            )
    return frozenset(origin.rstrip("/").lower() for origin in origins)


def _preflight(head: _Head) -> dict[str, str]:
    headers = {
        "access-control-allow-methods": _METHODS,
        "access-control-allow-headers": head.one(b"access-control-request-headers") or "*",
        "access-control-max-age": "600",
    }
    if head.one(b"access-control-request-private-network") == "true":
        headers["access-control-allow-private-network"] = "true"
    return headers


def _host_name(value: str) -> str:
    """Of a Host header: the name or address without port and brackets, in lower case."""
    match = _HOST.fullmatch(value)
    return "" if match is None else (match["address"] or match["name"]).lower().rstrip(".")


def _same_origin(origin: str, host: str) -> bool:
    return origin.partition("://")[2].lower() == host.lower() != ""


def _path(scope: Scope) -> str:
    """The path as it was sent, which is printable ASCII; without the query, which may hold a secret."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return "".join(chr(byte) if 0x20 < byte < 0x7F else "?" for byte in raw[:200])


def _checked_key(key: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise RequestError("an API key is empty or has blanks or other than ASCII characters; expected printable ASCII")
    return key


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _namespace(key: str) -> str:
    return blake2b(key.encode(), digest_size=16, person=b"freehold-keys").hexdigest()

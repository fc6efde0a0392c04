"""HTTP as a pull needs it: GET and HEAD over the standard library, with rules about where a request may go.

Owns the rules. The user names an endpoint; whatever it redirects to is somebody else's choice, so such a request
carries no credentials, goes by HTTPS, and reaches no address nearer to this machine than the endpoint itself is: not a
private one from a public endpoint, not this machine from a private one. The address is that of the connection, not what
a name resolved to before it. Proxies and certificates are the environment's (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).
Knows nothing of models.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import time
import urllib.request
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from freehold.errors import DownloadError

TIMEOUT_SECONDS = 30.0
MAX_REDIRECTS = 5
ATTEMPTS = 4
"""How often in a row a request may fail for a reason that may pass, before the pull gives up."""

_SECRET = ("authorization", "cookie")
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_PUBLIC, _PRIVATE, _LOOPBACK = 0, 1, 2
_FAKE = ipaddress.ip_network("198.18.0.0/15")
"""Reserved for benchmarks. Proxies that answer DNS themselves hand it out for public names; no service lives there."""


class WebError(DownloadError):
    """A request that failed: with an HTTP status, or None. transient: it may pass, so that trying again makes sense."""

    def __init__(self, message: str, *, status: int | None = None, transient: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.transient = transient


class WebClient:
    """Requests to one endpoint that the user named, and to where it redirects. Safe to use from several threads.

    `headers` go to the endpoint alone. `denied` ends the message where the endpoint answers 401 or 403.
    """

    def __init__(self, endpoint: str, headers: Mapping[str, str] | None = None, denied: str = "") -> None:
        self._origin = _origin(endpoint)
        self._headers = dict(headers or {})
        self._denied = denied
        self._nearness = _PUBLIC  # of the endpoint, once it was reached
        self._live: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._aborted = False
        self._opener = urllib.request.build_opener(_NoRedirects, _PlainHandler(self), _SecureHandler(self))

    def open(self, url: str, extra: Mapping[str, str] | None = None, method: str = "GET") -> http.client.HTTPResponse:
        """The response at the end of the redirects, its body unread; the caller closes it. Raises WebError."""
        headers = {"User-Agent": "freehold", **(extra or {}), **self._headers}
        for _ in range(MAX_REDIRECTS + 1):
            if _origin(url) != self._origin:
                headers = {name: value for name, value in headers.items() if name.lower() not in _SECRET}
            found = self._request(url, headers, method)
            if isinstance(found, http.client.HTTPResponse):
                return found
            url = urljoin(url, found)
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise WebError(f"{_host(url)}: a redirect to {url[:100]!r} is refused; expected https://")
        raise WebError(f"{self._origin[1]}: more than {MAX_REDIRECTS} redirects")

    def read(self, url: str, limit: int) -> bytes:
        """The body at `url`, of at most `limit` bytes. Tries again what may pass. Raises WebError."""
        for attempt in range(ATTEMPTS):
            try:
                with self.open(url) as response:
                    body = response.read(limit + 1)
                if len(body) > limit:
                    raise WebError(f"{_host(url)} sent more than {limit} bytes for {urlsplit(url).path[:100]}")
                expected = response.headers.get("Content-Length")
                if expected is not None and expected.isdigit() and len(body) < int(expected):
                    raise WebError(f"{_host(url)}: the connection was cut", transient=True)
                return body
            except WebError as error:
                if not error.transient or attempt == ATTEMPTS - 1:
                    raise
            except (OSError, http.client.HTTPException) as error:
                if attempt == ATTEMPTS - 1:
                    raise WebError(f"{_host(url)}: {network_reason(error)}", transient=True) from error
            time.sleep(min(0.2 * 2**attempt, 2.0))
        raise AssertionError("the last attempt returns or raises")

    def read_json(self, url: str, limit: int = 32 << 20) -> Any:
        """As `read`, parsed. Raises WebError for what is not JSON."""
        try:
            return json.loads(self.read(url, limit))
        except (ValueError, RecursionError):
            raise WebError(
                f"{_host(url)} answered {urlsplit(url).path[:100]} with something that is not JSON"
            ) from None

    def abort(self) -> None:
        """End every request under way, and refuse new ones: threads that wait for the network return at once."""
        self._aborted = True
        for connection in list(self._live):
            with suppress(OSError):  # closed meanwhile
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS, which another thread is using

    def check_connection(self, connection: socket.socket, request: urllib.request.Request) -> None:
        """WebError unless `request` may go to where `connection` leads; called before anything is sent."""
        self._live.add(connection)
        scheme, host, _ = origin = _origin(request.full_url)
        if request.has_proxy():  # the peer is the proxy; of the target only the name is known here
            nearness = _nearness(host) if _is_address(host) else _LOOPBACK if host == "localhost" else _PUBLIC
        else:
            nearness = _nearness(connection.getpeername()[0])
        if origin == self._origin:
            self._nearness = max(self._nearness, nearness or _PUBLIC)
        elif nearness is None or nearness > self._nearness:
            connection.close()
            raise WebError(
                f"{self._origin[1]} redirects to {host}, an address that is not public; refused, for it may be a "
                f"service of this network that nobody but you should reach"
            )
        if scheme == "http" and not nearness:
            connection.close()
            raise WebError(f"http://{host} is refused: anybody on the way could change the files; expected https://")

    def _request(self, url: str, headers: Mapping[str, str], method: str) -> http.client.HTTPResponse | str:
        """The response, or where it redirects to."""
        if self._aborted:
            raise WebError("the pull was interrupted")
        request = urllib.request.Request(url, headers=dict(headers), method=method)
        try:
            return cast(http.client.HTTPResponse, self._opener.open(request, timeout=TIMEOUT_SECONDS))
        except HTTPError as error:
            with error:
                location = error.headers.get("Location")
                if error.code in _REDIRECTS and location:
                    return location
            hint = f"; {self._denied}" if error.code in (401, 403) and self._denied else ""
            raise WebError(
                f"{_host(url)} answered {urlsplit(url).path[:200]} with {error.code} {str(error.reason)[:80]}{hint}",
                status=error.code,
                transient=error.code in _TRANSIENT,
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise WebError(f"{_host(url)}: {network_reason(error)}", transient=True) from error


def network_reason(error: BaseException) -> str:
    """What went wrong on the network, in a few words."""
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, socket.gaierror):
        return "no such host, or no connection to a name server"
    if isinstance(reason, TimeoutError):
        return f"no answer for {TIMEOUT_SECONDS:.0f} s"
    if isinstance(reason, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the connection was cut"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason)[:200] or type(reason).__name__


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to WebClient.open."""

    def redirect_request(self, *args: Any) -> None:
        return None


class _PlainHandler(urllib.request.HTTPHandler):
    def __init__(self, client: WebClient) -> None:
        super().__init__()
        self._client = client

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connect(host: str, **options: Any) -> http.client.HTTPConnection:
            return _PlainConnection(lambda peer: self._client.check_connection(peer, req), host, **options)

        return self.do_open(cast(Any, connect), req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, client: WebClient) -> None:
        super().__init__()
        self._client = client

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connect(host: str, **options: Any) -> http.client.HTTPConnection:
            return _SecureConnection(lambda peer: self._client.check_connection(peer, req), host, **options)

        return self.do_open(cast(Any, connect), req)


class _PlainConnection(http.client.HTTPConnection):
    def __init__(self, check: Callable[[socket.socket], None], host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._check = check

    def connect(self) -> None:
        super().connect()
        self._check(self.sock)


class _SecureConnection(http.client.HTTPSConnection):
    def __init__(self, check: Callable[[socket.socket], None], host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._check = check

    def connect(self) -> None:
        super().connect()
        self._check(self.sock)


def user_endpoint(variable: str, default: str) -> str:
    """The endpoint that the environment names, without a slash at its end; a host alone means HTTPS."""
    value = os.environ.get(variable, "").strip() or default
    return (value if "://" in value else f"https://{value}").rstrip("/")


def _nearness(address: str) -> int | None:
    """How near to this machine an address is; None for those that no server has (link-local, multicast, reserved)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    if ip.is_loopback:
        return _LOOPBACK
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return None
    return _PUBLIC if ip.is_global or ip in _FAKE else _PRIVATE


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise WebError(f"{url[:100]!r} is no URL: its port is not a number") from None
    return parts.scheme, (parts.hostname or "").lower(), port or (443 if parts.scheme == "https" else 80)


def _host(url: str) -> str:
    return (urlsplit(url).hostname or url)[:100]

"""A hub on loopback: Hugging Face's and ModelScope's APIs, as far as a pull uses them, and plain files.

The real clients talk to it. What it serves is `repositories`; `faults` says what goes wrong on a path, and `requests`
what was asked of it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Fault:
    """What goes wrong with a file, the first `times` times. cut: after so many bytes the connection closes."""

    times: int = 1
    status: int | None = None
    cut: int | None = None
    body: bytes | None = None
    redirect: str | None = None
    ignore_range: bool = False
    wait: threading.Event | None = None


@dataclass
class Asked:
    """One request as the hub saw it."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class LoopbackHub:
    """repositories: ORG/NAME -> file -> bytes. files: URL path -> bytes. gated: ORG/NAME -> the status it answers."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    gated: dict[str, int] = field(default_factory=dict)
    requests: list[Asked] = field(default_factory=list)
    storage: str = ""  # where Hugging Face's LFS files redirect to: another origin, as in the real one
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)  # overrides of what a listing says of a file

    def bytes_asked(self, name: str) -> list[str]:
        """The Range of every GET of the file `name`; "" for one of all of it."""
        return [
            asked.headers.get("Range", "")
            for asked in self.requests
            if asked.method == "GET" and unquote(asked.path).partition("&x=")[0].endswith(name)
        ]


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", "tokenizer.json"))


@contextmanager
def serve_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    servers = [_Server(hub) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    hub.url, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for fault in hub.faults.values():
            if fault.wait is not None:
                fault.wait.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub


class Handler(BaseHTTPRequestHandler):
    """One request. Names of methods with capitals are the library's."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> LoopbackHub:
        assert isinstance(self.server, _Server)
        return self.server.hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        headers = {name.title(): value for name, value in self.headers.items()}
        self.hub.requests.append(Asked(self.command, self.path, headers))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        with suppress(BrokenPipeError, ConnectionResetError):
            if path.startswith("/api/v1/models/"):
                self.modelscope(path[len("/api/v1/models/") :], parse_qs(parts.query))
            elif path.startswith("/api/models/"):
                self.model_info(path[len("/api/models/") :])
            elif "/resolve/" in path:
                self.resolve(path[1:])
            elif path in self.hub.files:
                self.send_file(path, self.hub.files[path], {"ETag": f'"{git_oid(self.hub.files[path])}"'})
            else:
                self.send_body(404, b"no such file")

    def model_info(self, path: str) -> None:
        repo, _, revision = path.partition("/revision/")
        if self.hub.gated.get(repo):
            self.hub_error(self.hub.gated[repo], "GatedRepo")
        elif repo not in self.hub.repositories:
            self.hub_error(404, "RepoNotFound")
        elif revision not in ("", "main", "v1", COMMIT):
            self.hub_error(404, "RevisionNotFound")
        elif not self.misbehave(f"/api/models/{repo}", {}):
            siblings = []
            for name, data in self.hub.repositories[repo].items():
                facts: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_oid(data)}
                if is_lfs(name):
                    facts["lfs"] = {"size": len(data), "sha256": sha256(data), "pointerSize": 134}
                siblings.append({**facts, **self.hub.listed.get(name, {})})
            info = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": ["license:apache-2.0"]}
            self.send_body(200, json.dumps(info).encode())

    def resolve(self, path: str) -> None:
        repo, _, rest = path.partition("/resolve/")
        name = rest.partition("/")[2]
        data = self.hub.repositories.get(repo, {}).get(name)
        if data is None:
            self.hub_error(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{git_oid(data)}"', "X-Repo-Commit": COMMIT}
        if is_lfs(name):
            headers["X-Linked-Etag"] = headers["ETag"] = f'"{sha256(data)}"'
            headers["X-Linked-Size"] = str(len(data))
            assert isinstance(self.server, _Server)
            if self.server.server_port != int(self.hub.storage.rpartition(":")[2]):
                self.redirect(f"{self.hub.storage}{self.path}", headers)
                return
        self.send_file(f"/{name}", data, headers)

    def modelscope(self, path: str, query: dict[str, list[str]]) -> None:
        repo, _, kind = path.partition("/repo")
        revision = query.get("Revision", ["master"])[0]
        if self.hub.gated.get(repo):
            self.send_body(self.hub.gated[repo], b"{}")
        elif repo not in self.hub.repositories or revision not in ("master", "v1"):
            self.send_body(404, b'{"Code": 10010205001, "Message": "not found", "Success": false}')
        elif kind == "" and "/repo" not in path:
            self.send_body(200, b'{"Code": 200, "Data": {"License": "MIT"}}')
        elif kind == "/files":
            files: list[dict[str, Any]] = [{"Path": "folder", "Name": "folder", "Type": "tree", "Size": 0}]
            for name, data in self.hub.repositories[repo].items():
                facts = {"Path": name, "Size": len(data), "Sha256": sha256(data), "Type": "blob"}
                files.append({**facts, **self.hub.listed.get(name, {})})
            self.send_body(200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": files}}).encode())
        else:
            name = query["FilePath"][0]
            self.send_file(f"/{name}", self.hub.repositories[repo][name], {})

    def send_file(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        fault = self.take_fault(path)
        if fault is not None and fault.wait is not None:
            fault.wait.wait(20)
        if fault is not None and (fault.status or fault.redirect):
            self.fail(fault, headers)
            return
        data = fault.body if fault is not None and fault.body is not None else data
        wanted = self.headers.get("Range", "")
        start, status = 0, 200
        unchanged = self.headers.get("If-Range") in (None, headers.get("ETag"))
        if wanted and unchanged and not (fault is not None and fault.ignore_range):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_body(416, b"")
                return
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.send_body(status, data[start:], headers, None if fault is None else fault.cut)

    def take_fault(self, path: str) -> Fault | None:
        fault = self.hub.faults.get(path)
        if fault is None or fault.times == 0 or self.command == "HEAD":
            return None
        fault.times -= 1
        return fault

    def misbehave(self, path: str, headers: dict[str, str]) -> bool:
        fault = self.take_fault(path)
        if fault is None:
            return False
        self.fail(fault, headers)
        return True

    def fail(self, fault: Fault, headers: dict[str, str]) -> None:
        if fault.redirect:
            self.redirect(fault.redirect, headers)
        elif fault.status:
            self.send_body(fault.status, b"fault")
        else:
            self.close_connection = True

    def redirect(self, url: str, headers: dict[str, str]) -> None:
        self.send_body(302, b"", {**headers, "Location": url})

    def hub_error(self, status: int, code: str) -> None:
        self.send_body(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def send_body(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

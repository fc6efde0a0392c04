"""Reading what the user types: a line editor with history on a real terminal, plain lines everywhere else.

Owns multi-line input and the history file. Knows nothing of models or of what the text will mean.

Enter sends. Three ways to go on to another line instead: Alt-Enter; a backslash at the end of the line; or a block that
opens with a line holding only three double quotes and ends with another. Pasted line breaks never send.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from freehold.terminal.console import note

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "> "
CONTINUATION = ". "
FENCE = '"""'


class Editor(Protocol):
    """Where the chat gets its input from."""

    def read(self) -> str:
        """The next message, line breaks included. EOFError at the end of input, KeyboardInterrupt for Ctrl-C."""
        ...


def open_editor(history: Path, commands: Sequence[str]) -> Editor:
    """The best editor this terminal carries. `commands` complete with Tab."""
    if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", ""):
        return LineEditor(history, commands)
    return PlainEditor()


def open_block(text: str) -> bool:
    """Whether `text` starts a fenced block that has not ended yet."""
    lines = text.split("\n")
    return lines[0].strip() == FENCE and (len(lines) == 1 or lines[-1].strip() != FENCE)


def unfence(text: str) -> str:
    """`text` without the fence lines of a complete block; any other text unchanged."""
    lines = text.split("\n")
    if len(lines) > 1 and lines[0].strip() == lines[-1].strip() == FENCE:
        return "\n".join(lines[1:-1])
    return text


class PlainEditor:
    """Lines from standard input; the prompt goes to standard error, so that standard output holds only answers."""

    def read(self) -> str:
        lines: list[str] = []
        while True:
            print(CONTINUATION if lines else PROMPT, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line and not lines:
                raise EOFError
            if not line:
                break
            lines.append(line.removesuffix("\n"))
            if open_block("\n".join(lines)):
                continue
            if not line.endswith("\\\n"):
                break
            lines[-1] = lines[-1][:-1]
        return unfence("\n".join(lines))


class LineEditor:
    """Editing keys, bracketed paste, and a history that outlives the process."""

    def __init__(self, history: Path, commands: Sequence[str]) -> None:
        # Imported here: nothing but the interactive chat needs it, and it takes 0.15 s.
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter

        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=CONTINUATION,
            history=_history(history),
            key_bindings=_key_bindings(),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
        )

    def read(self) -> str:
        return unfence(self._session.prompt())


def _history(path: Path) -> History:
    """The history file, readable by its owner alone; in memory when the file cannot be used."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        note(f"input history is not kept: {path}: {error.strerror}")
        return InMemoryHistory()
    return FileHistory(str(path))


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send_or_continue(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if open_block(buffer.text):
            buffer.insert_text("\n")
        elif buffer.document.text_before_cursor.endswith("\\") and not buffer.document.text_after_cursor:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys

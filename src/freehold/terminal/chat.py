"""The interactive chat: reads a message, streams the answer, obeys the slash commands.

Owns the conversation and its commands. Where the text comes from is the editor's business; what is printed was made
harmless by the console. A failed request costs its own message, never the chat.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.errors import FreeholdError, RequestError
from freehold.hub import Store
from freehold.terminal import transcript
from freehold.terminal.ask import AnswerOptions, check_effort, describe_speed
from freehold.terminal.console import note, printable
from freehold.terminal.display import Display, tell_calls
from freehold.terminal.editor import Editor, open_editor
from freehold.text.chat import Message

if TYPE_CHECKING:
    from freehold.reply import Reply
    from freehold.runtime import LocalModel

HELP = """\
/help           this text
/system [TEXT]  set the system message; without TEXT show it
/effort [LEVEL] how much the model shall think: low, medium or high
/clear          forget the conversation, keep the system message
/save FILE      write the conversation to FILE (JSON)
/load FILE      continue a saved conversation
/stats          tokens, speeds, context in use
/exit           leave; so does Ctrl-D

Enter sends. For more lines: Alt-Enter, a backslash at the end of a line, or a block between two lines of \"\"\".
Pasted text keeps its line breaks. A space before the slash sends a command's name as text.
Ctrl-C stops the answer; what was said until then stays in the conversation."""

COMMANDS = ("/help", "/system", "/effort", "/clear", "/save", "/load", "/stats", "/exit")
_COMMAND = re.compile(r"(/\w+)(?:\s+(.*))?", re.DOTALL)


def open_chat(model: LocalModel, options: AnswerOptions) -> None:
    """Chat on this terminal until the user leaves."""
    Chat(model, options).run(open_editor(Store().root / "history", COMMANDS))


class Chat:
    """One conversation with one model."""

    def __init__(self, model: LocalModel, options: AnswerOptions) -> None:
        self._model = model
        self._options = options
        self._system = options.system
        self._turns: list[Message] = []
        self._last: Reply | None = None
        self._n_answers = 0
        self._n_generated = 0
        self._actions: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._say(HELP),
            "/system": self._set_system,
            "/effort": self._set_effort,
            "/clear": self._clear,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
        }

    @property
    def messages(self) -> list[Message]:
        """The conversation as the next request will carry it."""
        system = [Message(role="system", content=self._system)] if self._system else []
        return [*system, *self._turns]

    def run(self, editor: Editor) -> None:
        """Read and answer until the user leaves."""
        self._say(
            f"{self._model.name}, {self._model.max_context} tokens of context. /help lists the commands, Ctrl-D leaves."
        )
        while True:
            try:
                text = editor.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("(Ctrl-D or /exit leaves)")
                continue
            try:
                if not self.handle(text):
                    return
            except FreeholdError as error:
                note(f"error: {error}")
            except KeyboardInterrupt:  # before the first token was waited for, or a second one while stopping
                self._say("(stopped)")

    def handle(self, text: str) -> bool:
        """Obey a command or answer a message. False when the user wants to leave."""
        command = _COMMAND.fullmatch(text.rstrip())
        if command is None:
            if text.strip():
                self._answer(text.removeprefix(" ") if text.startswith(" /") else text)
            return True
        name, argument = command[1], (command[2] or "").strip()
        if name == "/exit":
            return False
        if name not in self._actions:
            near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
            raise RequestError(f"unknown command {name}; {f'did you mean {near[0]}?' if near else '/help lists them'}")
        self._actions[name](argument)
        return True

    def _answer(self, text: str) -> None:
        """Stream one answer. Ctrl-C stops it; the partial answer stays, a question without any answer does not."""
        self._turns.append(Message(role="user", content=text))
        answered = False
        try:
            with self._model.chat(self.messages, stream=True, **self._options.keywords()) as stream:
                try:
                    Display(hide_reasoning=self._options.hide_reasoning, defang=True).show(stream)
                except KeyboardInterrupt:
                    stream.close()
                reply = stream.reply()
            tell_calls(reply)
            answered = bool(reply.text)
            if answered:
                self._turns.append(self._turn(reply))
            self._record(reply)
        finally:
            if not answered:
                self._turns.pop()

    def _turn(self, reply: Reply) -> Message:
        """The answer as the next request will carry it. Its ids would bring back calls that nobody will answer, and
        what a stop string cut off.
        """
        ids = None if reply.tool_calls or self._options.stop else reply.ids
        return Message(role="assistant", content=reply.text, reasoning=reply.reasoning, ids=ids)

    def _record(self, reply: Reply) -> None:
        self._last = reply
        self._n_answers += 1
        self._n_generated += reply.n_generated
        if reply.finish_reason == "cancelled":
            self._say("(stopped)" if reply.text else "(stopped before the first word; the question is forgotten)")
        elif not reply.text:
            what = "was still thinking" if reply.finish_reason == "length" and reply.n_reasoning else "said nothing"
            what = "only called tools, which this chat has not" if reply.tool_calls else what
            self._say(f"(the model {what}; the question is forgotten)")
        elif reply.finish_reason == "length":
            full = reply.n_prompt + reply.n_generated >= self._model.max_context
            self._say("(cut short: the context is full; /clear makes room)" if full else "(cut short by --max-tokens)")
        if self._options.verbose:
            note(describe_speed(reply))

    def _set_system(self, text: str) -> None:
        if text:
            self._system = text
        self._say(
            f"system: {self._system}"
            if self._system
            else "no system message is set; the model's template may add its own"
        )

    def _set_effort(self, level: str) -> None:
        if level:
            check_effort(self._model, level)
            self._options = dataclasses.replace(self._options, effort=level)
        self._say(f"effort: {self._options.effort or 'as the model has it'}")

    def _clear(self, argument: str) -> None:
        self._turns.clear()
        self._say("(cleared)")

    def _save(self, argument: str) -> None:
        path = _path(argument, "/save")
        transcript.save(path, transcript.Transcript(self._model.name, self._system, tuple(self._turns)))
        self._say(f"(saved {len(self._turns)} messages to {path})")

    def _load(self, argument: str) -> None:
        path = _path(argument, "/load")
        loaded = transcript.load(path)
        self._system, self._turns = loaded.system, list(loaded.messages)
        self._say(f"(loaded {len(self._turns)} messages from {path})")

    def _stats(self, argument: str) -> None:
        self._say(f"{self._n_answers} answers, {self._n_generated} tokens generated in this chat")
        if self._last is not None:
            used = self._last.n_prompt + self._last.n_generated
            self._say(f"context: {used} of {self._model.max_context} tokens in use")
            self._say(f"last answer: {describe_speed(self._last)}")

    def _say(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise RequestError(f"{command} needs a file name, as in {command} chat.json")
    return Path(argument).expanduser()

"""From the token ids of a harmony answer to events, one id at a time. Total: no sequence of ids makes it raise.

Owns the states between control tokens, where text goes, and what becomes of malformed output. The words of a header are
harmony_header's. It starts right after the generation prompt, `<|start|>assistant`, inside a header.

    state    | <|start|>   <|channel|>  <|constrain|>  <|message|>  end, call, return  text            the answer's end
    ---------+------------------------------------------------------------------------------------------------------
    header   | settle,     next piece   next piece     -> body      settle,            collect; bare   settle
             | new header                                           new header         text -> body
    body     | new header  new header*  dropped*       dropped*     new header         event           flush

A star marks a recovery, which is counted, and so is each malformed header:
- Words that cannot begin a header are text of the answer, at once, and so is a header over MAX_HEADER_TOKENS whose
  channel nobody can read: neither may be lost or held back.
- To settle a header without <|message|>: where it names a channel or a tool, the words that follow are its body. Where
  it does not, it is junk and dropped. A header that the end of the answer cut short says nothing yet.
- The recipient decides what is a call, whatever the channel; then the channel decides: analysis is reasoning, all else
  is visible. A message in somebody else's name, such as a made-up tool result, is dropped.
- Control tokens that are not harmony's are dropped wherever they stand.
- If nothing visible and no call came out, what was dropped is the answer after all, and delivered as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from freehold.text.answer import CallStart, Event
from freehold.text.call_arguments import CallArguments
from freehold.text.harmony_header import (
    CHANNELS,
    NAMESPACE,
    Header,
    Mark,
    Role,
    is_header_word,
    may_be_header,
    read_header,
)
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.tokenizer import IncrementalDecoder, Tokenizer

MAX_HEADER_TOKENS = 96
"""A function's name has up to 64 characters, its header a dozen words; one that goes on is no header."""

BETWEEN_MESSAGES = "\n\n"
"""Stands between two messages of the same kind, which a reader gets as one text."""

Kind = Literal["text", "reasoning", "tool_call", "dropped"]


class HarmonyParser:
    """An AnswerParser for harmony. `tools` are those that the prompt offered, as OpenAI tool objects."""

    def __init__(
        self, tokenizer: Tokenizer, tokens: HarmonyTokens, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        self.n_reasoning = 0
        self.in_text = False
        self._tokens = tokens
        self._controls = frozenset(tokenizer.special_ids.values())
        self._n_ids = tokenizer.vocab_size
        self._decoder = IncrementalDecoder(tokenizer)
        self._schemas = _schemas(tools or ())
        self._output = _Output(self._schemas)
        self._header: _Draft | None = _Draft("given")  # None inside a body

    @property
    def n_recoveries(self) -> int:
        return self._output.n_recoveries

    def push(self, id: int) -> list[Event]:
        is_control = id in self._controls or not 0 <= id < self._n_ids
        if is_control:
            self._end_text()
            self._take_control(id)
        else:
            self._take_text(id)
        if self._header is not None and self._header.n_tokens > MAX_HEADER_TOKENS:
            self._open_unannounced(self._header, self._read(self._header), otherwise="text")
        self.in_text = not is_control and self._header is None and self._output.kind == "text"
        return self._output.take()

    def finish(self) -> list[Event]:
        self._end_text()
        if self._header is None:
            self._output.close(cut=True)
        else:
            self._settle(self._header, cut=True)
        self._output.deliver_dropped()
        return self._output.take()

    def _take_text(self, id: int) -> None:
        text = self._decoder.push(id)
        if self._header is None:
            self.n_reasoning += self._output.kind == "reasoning"
            self._output.write(text)
            return
        draft = self._header
        draft.add(text)
        if draft.is_bare and not may_be_header(draft.text, draft.role == "due"):
            self._open_bare(draft)

    def _end_text(self) -> None:
        """A run of text ends here, so a character left unfinished is none."""
        text = self._decoder.flush()
        if self._header is None:
            self._output.write(text)
        else:
            self._header.pieces[-1] = (self._header.pieces[-1][0], self._header.pieces[-1][1] + text)

    def _take_control(self, id: int) -> None:
        tokens, draft = self._tokens, self._header
        if id == tokens.start:
            self._start_message(draft)
        elif id in tokens.closing:
            self._end_message(draft)
        elif draft is not None and id == tokens.message:
            self._open(self._read(draft, complete=True), otherwise="text")
        elif draft is not None and id in (tokens.channel, tokens.constrain):
            draft.split("channel" if id == tokens.channel else "type")
        elif id == tokens.channel:
            self._output.recover()
            self._output.close()
            self._header = _Draft("given")
            self._header.split("channel")
        else:
            self._output.recover()
            if draft is not None:
                draft.split("stray")

    def _start_message(self, draft: _Draft | None) -> None:
        if draft is None:
            self._output.recover()
            self._output.close()
        elif not (draft.role == "missing" and draft.is_empty):
            self._settle(draft)
        self._header = _Draft("due")

    def _end_message(self, draft: _Draft | None) -> None:
        if draft is None:
            self._output.close()
        else:
            self._settle(draft)
        self._header = _Draft("missing")

    def _read(self, draft: _Draft, complete: bool = False) -> Header:
        return read_header(draft.pieces, self._schemas, complete=complete, role=draft.role)

    def _open(self, header: Header, otherwise: Kind) -> None:
        """Begin the body that `header` announces; `otherwise` says what it is where the header does not."""
        self._output.recover(header.flawed)
        self._output.drop(header.junk)
        kind: Kind = otherwise
        if header.foreign:
            kind = "dropped"
        elif header.call is not None:
            kind = "tool_call"
        elif header.channel is not None:
            kind = "reasoning" if header.channel == "analysis" else "text"
        self._output.open(kind, header.call)
        self._output.write(header.body)
        self._header = None

    def _open_unannounced(self, draft: _Draft, header: Header, otherwise: Kind) -> None:
        """Begin a body although <|message|> did not come."""
        if draft.is_bare and header.call is None and not header.foreign:
            self._open_bare(draft)
        else:
            self._open(header, otherwise)

    def _open_bare(self, draft: _Draft) -> None:
        """Begin a body with the text of a header that is none."""
        text = draft.text
        if draft.role == "due" or (draft.role == "missing" and text.split()[:1] == ["assistant"]):
            text = text.lstrip().removeprefix("assistant").lstrip(" ")
        self._output.recover()
        self._output.open("text")
        self._output.write(text)
        self._header = None

    def _settle(self, draft: _Draft, cut: bool = False) -> None:
        """Make the best of a header that ends without <|message|>; `cut`: because the answer ends."""
        if draft.is_empty:
            self._output.recover(not cut)
            return
        header = self._read(draft)
        if cut and _says_nothing_yet(draft, header):
            return
        self._open_unannounced(draft, header, otherwise="dropped")
        self._output.close(cut)


@dataclass
class _Draft:
    """A header as it comes: text, cut into pieces by control tokens."""

    role: Role
    pieces: list[tuple[Mark, str]] = field(default_factory=lambda: [("role", "")])
    n_tokens: int = 0

    def add(self, text: str) -> None:
        mark, before = self.pieces[-1]
        self.pieces[-1] = (mark, before + text)
        self.n_tokens += 1

    def split(self, mark: Mark) -> None:
        self.pieces.append((mark, ""))
        self.n_tokens += 1

    @property
    def text(self) -> str:
        return self.pieces[0][1]

    @property
    def is_bare(self) -> bool:
        """No control token yet."""
        return len(self.pieces) == 1

    @property
    def is_empty(self) -> bool:
        return self.is_bare and not self.text


def _says_nothing_yet(draft: _Draft, header: Header) -> bool:
    """Whether all there is may be the beginning of a header that was well-formed."""
    if header.call is not None or header.channel is not None:
        return is_header_word(header.body)
    if draft.is_bare:  # after the prompt's own role, it may as well be the whole answer
        return draft.role != "given" and may_be_header(draft.text, role_written=False)
    return any(name.startswith(header.body) for name in CHANNELS)


class _Output:
    """Events on their way out: which message is open, how messages are joined, what was dropped."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any] | None]) -> None:
        self.kind: Kind = "dropped"
        self.n_recoveries = 0
        self._schemas = schemas
        self._events: list[Event] = []
        self._arguments = CallArguments(None)
        self._n_calls = 0
        self._fresh = True  # nothing of the open message was written yet
        self._said: set[Kind] = set()
        self._dropped: list[str] = []

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def recover(self, n: int = 1) -> None:
        self.n_recoveries += n

    def open(self, kind: Kind, call: CallStart | None = None) -> None:
        self.kind, self._fresh = kind, True
        if kind == "tool_call":
            assert call is not None
            self._arguments = CallArguments(self._schemas.get(call.name))
            self._events.append(Event(kind="tool_call", call=call, index=self._n_calls))
            self._n_calls += 1
        elif kind == "dropped":
            self._dropped.append("")

    def write(self, text: str) -> None:
        if not text:
            return
        if self.kind == "dropped":
            self._dropped[-1] += text
        elif self.kind == "tool_call":
            self._write_arguments(self._arguments.push(text))
        else:
            joint = BETWEEN_MESSAGES if self._fresh and self.kind in self._said else ""
            self._events.append(Event(kind=self.kind, text=joint + text))
            self._said.add(self.kind)
        self._fresh = False

    def close(self, cut: bool = False) -> None:
        if self.kind == "tool_call":
            text, as_expected = self._arguments.finish()
            self._write_arguments(text)
            self.recover(not (as_expected or cut))
        self.kind = "dropped"

    def drop(self, text: str) -> None:
        self._dropped.append(text)

    def deliver_dropped(self) -> None:
        """The whole answer is never lost: without anything else to show, what was dropped is shown."""
        dropped = BETWEEN_MESSAGES.join(text for text in self._dropped if text.strip())
        if "text" not in self._said and not self._n_calls:
            self.open("text")
            self.write(dropped)

    def _write_arguments(self, text: str) -> None:
        if text:
            self._events.append(Event(kind="tool_call", text=text, index=self._n_calls - 1))


def _schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any] | None]:
    """Name of each tool -> the schema of its parameters, None without one, or where the argument is text."""
    found: dict[str, Mapping[str, Any] | None] = {}
    for tool in tools:
        function = tool.get(str(tool.get("type", "function")))
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
            parameters = function.get("parameters")
            found[name.removeprefix(NAMESPACE) or name] = parameters if isinstance(parameters, Mapping) else None
    return found

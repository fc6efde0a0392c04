"""From the token ids of an answer to events, where thoughts and calls stand between marks. Total: no ids make it raise.

Owns the states between marks and where text goes. A mark is a mark whether it came as one control token or spelled out
over several; text that may become one is held back until that is certain, so how the ids arrive changes nothing.

    state     | begins with                                       | ends with
    ----------+---------------------------------------------------+-------------------------------------------
    beginning | the answer                                        | <think>, blanks before it; any other text
    thought   | <think>, in the answer or at the end of the prompt | </think>
    text      | everything else                                   | a call's opening mark, where tools are offered
    call      | a call's opening mark                             | the call's end, as its reader finds it

- Line breaks next to a mark that are the format's own are no text: as many as a template writes, no more.
- A call that cannot be read is text, its marks included. One that the answer's end cuts off is delivered as it is.
- Blanks after a call, where nothing else follows, are dropped. Any other control token is text, as PlainParser has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from freehold.text.answer import CallStart, Event
from freehold.text.answer_style import AnswerStyle, CallStyle
from freehold.text.call_reader import CallReader, Schemas
from freehold.text.json_call_reader import JsonCallReader
from freehold.text.pairs_reader import PairsReader
from freehold.text.tokenizer import IncrementalDecoder, Tokenizer

MAX_BLANKS = 256
"""More of them than are held back are text."""

State = Literal["beginning", "thought", "text", "call"]


class TaggedParser:
    """An AnswerParser for a style of answers. `tools`: those that the prompt offered, as OpenAI tool objects; `prompt`:
    its ids, the end of which says whether the answer begins inside a thought.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        style: AnswerStyle,
        tools: Sequence[Mapping[str, Any]] | None = None,
        prompt: Sequence[int] = (),
    ) -> None:
        self.n_recoveries = 0
        self.n_reasoning = 0
        self.in_text = False
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._events: list[Event] = []
        self._buffer = ""  # text that no state has made up its mind about
        self._thinking = style.thinking
        self._calls = style.calls if tools else None
        self._schemas = _schemas(tools or ())
        self._mark = _Marks(self._calls)
        self._mark_ids = _mark_ids(tokenizer, style)
        self._reader: CallReader | None = None
        self._opening = ""  # what opened the call that is being read, for a call that is none
        self._n_uncounted = 0
        self._n_calls = 0
        self._n_breaks = 0  # line breaks that are still the format's, if they come next
        self._said_text = False
        self._between_calls = False
        self._state: State = "text" if style.thinking is None else "beginning"
        self._must_think = style.thinking is not None and bool(style.thinking.is_open_in(prompt, tokenizer))
        if style.thinking is not None and self._must_think:
            self._n_breaks = max(0, style.thinking.n_inside - style.thinking.breaks_after(prompt, tokenizer))

    def push(self, id: int) -> list[Event]:
        was_thought = self._state == "thought" or (self._must_think and self._state == "beginning")
        if 0 <= id < self._tokenizer.vocab_size:
            self._buffer += self._decoder.push(id)
            self._advance(ended=False)
        is_mark = id in self._mark_ids
        self._count(was_thought and not is_mark)
        self.in_text = not is_mark and self._state == "text" and self._has_bytes(id)
        return self._take()

    def finish(self) -> list[Event]:
        self._buffer += self._decoder.flush()
        self._advance(ended=True)
        self.n_reasoning += self._n_uncounted if self._state == "thought" else 0
        return self._take()

    def _count(self, may_count: bool) -> None:
        """Count the token just read where it is reasoning. One that is held back may yet turn out to be of a mark."""
        if any(event.kind == "reasoning" for event in self._events):
            self.n_reasoning += self._n_uncounted + 1
            self._n_uncounted = 0
        else:
            self._n_uncounted = self._n_uncounted + 1 if may_count and self._state != "text" else 0

    def _has_bytes(self, id: int) -> bool:
        return 0 <= id < self._tokenizer.vocab_size and bool(self._tokenizer.token_bytes(id))

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _advance(self, ended: bool) -> None:
        """Let each state take what it can from the buffer, until none can take more."""
        step = {"beginning": self._begin, "thought": self._think, "text": self._speak, "call": self._call}
        while step[self._state](ended):
            pass

    def _begin(self, ended: bool) -> bool:
        assert self._thinking is not None
        rest = self._buffer.lstrip()
        if rest.startswith(self._thinking.open):
            self.n_recoveries += self._must_think  # the prompt had opened it
            self._buffer = rest[len(self._thinking.open) :]
            self._n_breaks = self._thinking.n_inside
            self._state = "thought"
        elif self._thinking.open.startswith(rest) and not ended and len(self._buffer) <= MAX_BLANKS:
            return False
        else:
            self._state = "thought" if self._must_think else "text"
        return True

    def _think(self, ended: bool) -> bool:
        thinking = self._thinking
        assert thinking is not None
        self._trim_breaks()
        at = self._buffer.find(thinking.close)
        if at < 0:
            held = 0 if ended else _n_held(self._buffer, thinking.close, thinking.n_inside)
            self._emit("reasoning", len(self._buffer) - held)
            return False
        n_breaks = _n_trailing(self._buffer[:at], thinking.n_inside)
        self._emit("reasoning", at - n_breaks)
        self._buffer = self._buffer[n_breaks + len(thinking.close) :]
        self._n_breaks = thinking.n_behind
        self._state = "text"
        return True

    def _speak(self, ended: bool) -> bool:
        self._trim_breaks()
        if self._calls is None:
            self._emit("text", len(self._buffer))
            return False
        may_be_bare = self._between_calls or (self._calls.is_bare and not self._said_text)
        if may_be_bare and "{" in self._calls.before and self._buffer.lstrip().startswith("{"):
            self._open_call("", 0)
            return True
        found = self._mark.search(self._buffer)
        n_text = found.start() if found else len(self._buffer)
        if found is None and not ended:
            n_text -= self._mark.n_held(self._buffer)
        if may_be_bare and not self._buffer[:n_text].strip():
            if found is None and not ended and n_text <= MAX_BLANKS:
                return False  # what comes next decides
            if self._between_calls:
                self._buffer, n_text = self._buffer[n_text:], 0
        self._emit("text", n_text)
        if found is None:
            return False
        mark = found[0]
        if mark.endswith(self._calls.open):
            self._open_call(mark, len(mark))
        else:  # a mark around calls
            self._buffer = self._buffer[len(mark) :]
            self._between_calls = True
        return True

    def _open_call(self, mark: str, n_chars: int) -> None:
        assert self._calls is not None
        self._opening, self._buffer = mark, self._buffer[n_chars:]
        self._reader = _reader(self._calls, self._schemas)
        self._state = "call"

    def _call(self, ended: bool) -> bool:
        reader = self._reader
        assert reader is not None
        was_named = reader.name is not None
        state = reader.state
        n, arguments = reader.read(self._buffer, ended)
        self._buffer = self._buffer[n:]
        if reader.name is not None and not was_named:
            self._events.append(Event(kind="tool_call", call=CallStart(reader.name), index=self._n_calls))
            self._n_calls += 1
        if arguments:
            self._events.append(Event(kind="tool_call", text=arguments, index=self._n_calls - 1))
        if reader.state == "failed":
            self._give_up()
        elif reader.state == "done":
            self.n_recoveries += reader.n_recoveries
            self._state, self._reader, self._between_calls = "text", None, True
        return bool(n) or reader.state != state

    def _give_up(self) -> None:
        """What looked like a call is text, from its mark on."""
        self.n_recoveries += bool(self._opening)
        self._say(self._opening)
        if not self._opening:
            self._emit("text", len(self._buffer) - len(self._buffer.lstrip()) + 1)
        self._state, self._reader = "text", None

    def _trim_breaks(self) -> None:
        n = _n_leading(self._buffer, self._n_breaks)
        self._buffer = self._buffer[n:]
        self._n_breaks = 0 if self._buffer else self._n_breaks - n

    def _emit(self, kind: Literal["text", "reasoning"], n_chars: int) -> None:
        """The buffer's first characters are certain."""
        text, self._buffer = self._buffer[:n_chars], self._buffer[n_chars:]
        if kind == "text":
            self._say(text)
        elif text:
            self._events.append(Event(kind="reasoning", text=text))

    def _say(self, text: str) -> None:
        if text:
            self._said_text |= bool(text.strip())
            self._between_calls = False
            self._events.append(Event(kind="text", text=text))


class _Marks:
    """The marks that may come in text: what opens a call, with the line breaks before it, and what stands around."""

    def __init__(self, style: CallStyle | None) -> None:
        self._texts = [] if style is None else [style.open, *filter(None, style.section)]
        self._n_before = style.n_before if style is not None else 0
        marks = "|".join(map(re.escape, self._texts))
        self._pattern = re.compile(rf"\n{{0,{self._n_before}}}(?:{marks})" if marks else r"(?!)")

    def search(self, text: str) -> re.Match[str] | None:
        return self._pattern.search(text)

    def n_held(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a mark."""
        return max((_n_held(text, mark, self._n_before) for mark in self._texts), default=0)


def _n_held(text: str, mark: str, n_breaks: int) -> int:
    """The length of the longest end of `text` that may be the beginning of `mark`, with line breaks before it."""
    for n in range(min(len(text), n_breaks + len(mark) - 1), 0, -1):
        end = text[-n:]
        if mark.startswith(end[_n_leading(end, n_breaks) :]):
            return n
    return 0


def _n_leading(text: str, most: int) -> int:
    """Line breaks at the beginning of `text`, at most so many."""
    return min(most, len(text) - len(text.lstrip("\n")))


def _n_trailing(text: str, most: int) -> int:
    return min(most, len(text) - len(text.rstrip("\n")))


def _reader(style: CallStyle, schemas: Schemas) -> CallReader:
    return JsonCallReader(style, schemas) if style.form == "json" else PairsReader(style, schemas)


def _mark_ids(tokenizer: Tokenizer, style: AnswerStyle) -> frozenset[int]:
    marks: list[str] = []
    if style.thinking is not None:
        marks += style.thinking.open, style.thinking.close
    if style.calls is not None:
        marks += style.calls.open, style.calls.close, *style.calls.section
    return frozenset(tokenizer.special_ids[mark] for mark in marks if mark in tokenizer.special_ids)


def _schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any] | None]:
    """Name of each tool -> the schema of its parameters, None without one, or where the argument is text."""
    found: dict[str, Mapping[str, Any] | None] = {}
    for tool in tools:
        function = tool.get(str(tool.get("type", "function")))
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
            parameters = function.get("parameters")
            found[name] = parameters if isinstance(parameters, Mapping) else None
    return found

"""One answer on the terminal as it comes: its reasoning apart from it, its calls at the end.

Owns what goes to which stream and the blank lines between. The answer alone is on standard output, unless that is the
terminal: there the reasoning stands before it, dimmed. Calls are only told of, since nothing here could run one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from freehold.terminal.console import note, printable, write_answer, write_aside

if TYPE_CHECKING:
    from freehold.reply import Reply, Stream


class Display:
    """Shows the events of one stream. `hide_reasoning` leaves of the reasoning only how long it was; with `defang`
    control characters are made harmless even where standard output is no terminal.
    """

    def __init__(self, *, hide_reasoning: bool = False, defang: bool = False) -> None:
        self._defang = defang
        self._hide_reasoning = hide_reasoning
        self._shown: Literal["nothing", "reasoning", "text"] = "nothing"
        self._at_line_start = True

    def show(self, stream: Stream) -> None:
        """Read and show the stream to its end. However it ends, what follows begins a line."""
        n_told = 0
        try:
            for event in stream:
                if event.kind == "reasoning":
                    self._show_reasoning(event.text)
                elif event.kind != "tool_call" and self._hide_reasoning and stream.n_reasoning > n_told:
                    write_aside(f"(thought for {stream.n_reasoning - n_told} tokens)\n")
                    n_told = stream.n_reasoning
                if event.kind == "text":
                    self._show_text(event.text)
        finally:
            self._end_line()

    def _show_reasoning(self, text: str) -> None:
        if self._hide_reasoning:
            return
        if self._shown == "text":
            self._end_line()
        self._shown = "reasoning"
        write_aside(text)
        self._at_line_start = text.endswith("\n")

    def _show_text(self, text: str) -> None:
        if self._shown == "reasoning":
            self._end_line()
            write_aside("\n")
        self._shown = "text"
        write_answer(printable(text) if self._defang else text)
        self._at_line_start = text.endswith("\n")

    def _end_line(self) -> None:
        if not self._at_line_start:
            (write_aside if self._shown == "reasoning" else write_answer)("\n")
        self._at_line_start = True


def tell_calls(reply: Reply) -> None:
    """Say which tools the model called, though none was offered."""
    for call in reply.tool_calls:
        note(f"the model called the tool {call.name!r}, which it was not offered, with {call.arguments or 'nothing'}")

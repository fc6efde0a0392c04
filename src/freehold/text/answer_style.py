"""How models that chat through a template of their own write answers: the marks of their thoughts and of their calls.

Owns the table of styles, and which of them a template speaks: told by the marks that stand in its source or among the
tokenizer's control tokens, never by a model's name. What the styles mean is for the parser and the grammar, which read
the same table. Knows no prompts and no requests.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from freehold.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Thinking:
    """Marks around a thought, and how many line breaks at most the format puts within and behind them."""

    open: str = "<think>"
    close: str = "</think>"
    n_inside: int = 1
    n_behind: int = 2

    def is_open_in(self, prompt: Sequence[int], tokenizer: Tokenizer) -> bool | None:
        """Whether the prompt ends inside a thought; None where it ends neither inside one nor right behind one."""
        tail = tokenizer.decode(prompt[-_TAIL_TOKENS:]).rstrip()
        for mark, is_open in ((self.open, True), (self.close, False)):
            if tail.endswith(mark):
                return is_open
        return None

    def breaks_after(self, prompt: Sequence[int], tokenizer: Tokenizer) -> int:
        """How many of the line breaks inside an opened thought the prompt itself has written."""
        tail = tokenizer.decode(prompt[-_TAIL_TOKENS:])
        return len(tail) - len(tail.rstrip("\n"))


@dataclass(frozen=True)
class CallStyle:
    """How a call is written: `before` name `between` arguments `behind`, in a `section` of its own if there is one.

    form: arguments are JSON, or key and value pairs between tags, `keyed` and `valued` (as opening and closing text).
    head: the regular expression of what stands between the opening mark and the arguments, models' slips allowed;
    `name` is a group. slack: what may stand around the closing mark. n_before: line breaks in front of a call, at most.
    is_bare: a call has no mark and is the whole answer. numbered: calls have ids like functions.NAME:0.
    """

    name: str
    before: str
    between: str
    behind: str
    open: str
    close: str
    head: str
    section: tuple[str, str] = ("", "")
    joint: str = ""
    form: Literal["json", "pairs"] = "json"
    keyed: tuple[str, str] = ("", "")
    valued: tuple[str, str] = ("", "")
    slack: str = " \t\r\n"
    n_before: int = 0
    is_bare: bool = False
    numbered: bool = False


@dataclass(frozen=True)
class AnswerStyle:
    """What is known of a model's answers; None where they have no such part, or nobody knows how it looks."""

    thinking: Thinking | None = None
    calls: CallStyle | None = None


_TAIL_TOKENS = 24
_JSON_NAME = r'"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*'
# DeepSeek's marks have a full-width bar and a block for a blank, which look like other characters.
_CALL_BEGIN, _CALL_END, _CALLS_BEGIN, _CALLS_END, _SEPARATOR = (
    f"<\uff5c{words.replace(' ', chr(0x2581))}\uff5c>"
    for words in ("tool call begin", "tool call end", "tool calls begin", "tool calls end", "tool sep")
)

_CODER = CallStyle(
    "qwen3_coder",
    before="<tool_call>\n<function=",
    between=">\n",
    behind="</function>\n</tool_call>",
    open="<tool_call>",
    close="</tool_call>",
    head=r"\s*<function=(?P<name>[^\s<>]+)>",
    joint="\n",
    form="pairs",
    keyed=("<parameter=", ">\n"),
    valued=("", "\n</parameter>\n"),
    n_before=1,
)
_GLM = CallStyle(
    "glm",
    before="<tool_call>",
    between="\n",
    behind="</tool_call>",
    open="<tool_call>",
    close="</tool_call>",
    head=r"\s*(?P<name>[^\s<>{}\"]+)\s*(?=<arg_key>|</tool_call>)",
    joint="\n",
    form="pairs",
    keyed=("<arg_key>", "</arg_key>\n"),
    valued=("<arg_value>", "</arg_value>\n"),
    n_before=1,
)
_HERMES = CallStyle(
    "hermes",
    before='<tool_call>\n{"name": "',
    between='", "arguments": ',
    behind="}\n</tool_call>",
    open="<tool_call>",
    close="</tool_call>",
    head=rf'\s*\{{\s*{_JSON_NAME}"(?:arguments|parameters)"\s*:\s*(?=\S)',
    joint="\n",
    slack=" \t\r\n}",
    n_before=1,
)
_KIMI = CallStyle(
    "kimi",
    before="<|tool_call_begin|>functions.",
    between="<|tool_call_argument_begin|>",
    behind="<|tool_call_end|>",
    open="<|tool_call_begin|>",
    close="<|tool_call_end|>",
    head=r"\s*(?:functions\.)?(?P<name>[^\s:<]+)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(?=\S)",
    section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    numbered=True,
)
_DEEPSEEK_V3 = CallStyle(
    "deepseek_v3",
    before=f"{_CALL_BEGIN}function{_SEPARATOR}",
    between="\n```json\n",
    behind=f"\n```{_CALL_END}",
    open=_CALL_BEGIN,
    close=_CALL_END,
    head=rf"\s*function\s*{_SEPARATOR}\s*(?P<name>[^\s<`{{]+)\s*(?:```(?:json)?)?\s*(?=[{{\[<])",
    section=(_CALLS_BEGIN, _CALLS_END),
    joint="\n",
    slack=" \t\r\n`",
)
_DEEPSEEK_V31 = CallStyle(
    "deepseek_v3_1",
    before=_CALL_BEGIN,
    between=_SEPARATOR,
    behind=_CALL_END,
    open=_CALL_BEGIN,
    close=_CALL_END,
    head=rf"\s*(?P<name>[^\s<{{]+)\s*{_SEPARATOR}\s*(?=\S)",
    section=(_CALLS_BEGIN, _CALLS_END),
)
_LLAMA = CallStyle(
    "llama",
    before='{"name": "',
    between='", "parameters": ',
    behind="}",
    open="<|python_tag|>",
    close="",
    head=rf'\s*\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?{_JSON_NAME}"(?:parameters|arguments)"\s*:\s*(?=\S)',
    slack=" \t\r\n}",
    is_bare=True,
)

_MARKS: tuple[tuple[CallStyle, tuple[str, ...]], ...] = (
    (_CODER, ("<tool_call>", "<function=", "<parameter=")),
    (_GLM, ("<tool_call>", "<arg_key>", "<arg_value>")),
    (_HERMES, ("<tool_call>", "arguments", "tools")),
    (_KIMI, ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "tools")),
    (_DEEPSEEK_V3, (_CALL_BEGIN, _SEPARATOR, "```json")),
    (_DEEPSEEK_V31, (_CALL_BEGIN, _SEPARATOR)),
    (_LLAMA, ('"parameters": ', "ipython", "tools")),
)
"""Each style with the marks that must all be there; the first that fits is taken, so the special ones come first."""


def style_of(source: str, control_tokens: Collection[str]) -> AnswerStyle:
    """The style of the answers to a template's prompts. The source decides; where it shows tools and no calls, as
    Kimi's first ones do, the tokenizer's control tokens may make up for the marks that are missing.
    """
    for places in ((source,), (source, control_tokens)):
        for style, marks in _MARKS:
            if all(any(mark in place for place in places) for mark in marks):
                return AnswerStyle(_thinking(source), style)
    return AnswerStyle(_thinking(source))


def _thinking(source: str) -> Thinking | None:
    if "</think>" not in source:
        return None
    # Qwen3 writes line breaks inside its marks and so do models whose template only takes thoughts away, like R1's and
    # QwQ's. Where a template puts the closing mark right behind another one, as in <think></think>, there are none.
    if not re.search(r">[\"']?</think>", source):
        return Thinking()
    return Thinking(n_inside=0, n_behind=1 if r"'\n' + content" in source else 0)

"""The first message of every harmony prompt, which says who the model is, what day it is and how hard to think.

Owns the options of a request that end up there, their defaults and limits, and the message's wording. An application's
own instructions do not belong here: the format puts them into the developer message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from freehold.errors import RequestError
from freehold.text.harmony_builtins import BUILTINS
from freehold.text.harmony_tools import tools_section

EFFORTS = {"low": "low", "medium": "medium", "high": "high", "minimal": "low", "none": "low"}
"""What may be asked for, and what the model is told: it knows three levels and cannot be told not to think."""

_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
_CHANNELS = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
_CALLS = "Calls to these tools must go to the commentary channel: 'functions'."
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


@dataclass(frozen=True)
class SystemOptions:
    """Options of a harmony prompt. An empty text leaves its line out; the date's default is today's, here.

    reasoning_effort: a key of EFFORTS. current_date: YYYY-MM-DD. builtin_tools: of "browser" and "python".
    Raises RequestError naming the option.
    """

    reasoning_effort: str = "medium"
    current_date: str | None = None
    model_identity: str = _IDENTITY
    knowledge_cutoff: str = "2024-06"
    builtin_tools: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SystemOptions:
        """From a request's options; None counts as not given, an unknown name is refused."""
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in options.items() if value is not None}
        if unknown := given.keys() - known:
            raise RequestError(
                f"the harmony format has no option {min(unknown)!r:.80}; expected one of {', '.join(sorted(known))}"
            )
        tools = given.get("builtin_tools", ())
        if not isinstance(tools, (list, tuple)) or not all(
            isinstance(tool, str) and tool in BUILTINS for tool in tools
        ):
            raise RequestError(f"builtin_tools is {tools!r:.80}; expected a list out of {', '.join(BUILTINS)}")
        return cls(**{**given, "builtin_tools": tuple(tools)})

    def __post_init__(self) -> None:
        effective_effort(self.reasoning_effort)
        if self.current_date and not _is_date(self.current_date):
            raise RequestError(f"current_date is {self.current_date!r:.80}; expected a date as YYYY-MM-DD")
        for name in ("model_identity", "knowledge_cutoff"):
            if not isinstance(value := getattr(self, name), str):
                raise RequestError(f"{name} is {value!r:.80}; expected text")


def effective_effort(effort: str) -> str:
    """What the model is told: low, medium or high. Raises RequestError for an effort it does not know."""
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise RequestError(
            f"reasoning_effort is {effort!r:.80}; expected low, medium or high, or minimal or none, which mean low"
        )
    return EFFORTS[effort]


def system_text(options: SystemOptions, has_functions: bool) -> str:
    """The body of the system message. All three channels are named even without functions, as the publisher advises."""
    today = date.today().isoformat() if options.current_date is None else options.current_date
    lines = [
        options.model_identity,
        options.knowledge_cutoff and f"Knowledge cutoff: {options.knowledge_cutoff}",
        today and f"Current date: {today}",
    ]
    tools = [BUILTINS[name] for name in sorted(set(options.builtin_tools))]
    sections = [
        "\n".join(filter(None, lines)),
        f"Reasoning: {effective_effort(options.reasoning_effort)}",
        tools_section(tools) if tools else "",
        f"{_CHANNELS}\n{_CALLS}" if has_functions else _CHANNELS,
    ]
    return "\n\n".join(filter(None, sections))


def _is_date(text: Any) -> bool:
    if not isinstance(text, str) or not _DATE.fullmatch(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True

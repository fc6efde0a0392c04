"""One question, one answer: what `freehold run` does when it has a prompt.

Owns the options of an answer and its report as text or JSON. How the answer is shown is the display's matter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from freehold.errors import RequestError
from freehold.terminal.console import note
from freehold.terminal.display import Display, tell_calls
from freehold.text.chat import Message

if TYPE_CHECKING:
    from freehold.prepared import SamplingOptions
    from freehold.reply import Reply
    from freehold.runtime import LocalModel

EFFORTS = ("low", "medium", "high")


@dataclass(frozen=True)
class AnswerOptions:
    """The command line's wishes for every answer; `sampling` holds only what was given."""

    system: str | None = None
    sampling: SamplingOptions = field(default_factory=lambda: {})  # type: ignore[assignment]
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    verbose: bool = False
    effort: str | None = None
    hide_reasoning: bool = False

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments for LocalModel.chat."""
        asked = {"max_tokens": self.max_tokens, "stop": self.stop, "reasoning_effort": self.effort}
        return {**self.sampling, **asked}


def ask(model: LocalModel, prompt: str, options: AnswerOptions) -> Reply:
    """Stream one answer to standard output, a line break at its end. Ctrl-C and a closed pipe cancel the generation."""
    with model.chat(_messages(prompt, options), stream=True, **options.keywords()) as stream:
        Display(hide_reasoning=options.hide_reasoning).show(stream)
        reply = stream.reply()
    tell_calls(reply)
    if reply.finish_reason == "length":
        thinking = " while the model was thinking" if reply.n_reasoning and not reply.text else ""
        note(f"the answer was cut short{thinking}: {_limit(model, reply)}")
    if options.verbose:
        remarks = ", ".join(filter(None, (model.load_remark, model.rounded)))
        note(f"load {model.load_seconds:.2f} s ({remarks}); {describe_speed(reply)}")
    return reply


def ask_json(model: LocalModel, prompt: str, options: AnswerOptions) -> str:
    """One answer as a JSON object: answer, reasoning (null without any), tool_calls in OpenAI's shape, finish_reason,
    usage (tokens; those of reasoning are part of the completion's) and timings (seconds, tokens per second).
    """
    reply = model.chat(_messages(prompt, options), **options.keywords())
    report = {
        "model": model.name,
        "answer": reply.text,
        "reasoning": reply.reasoning,
        "tool_calls": [call.to_dict() for call in reply.tool_calls],
        "finish_reason": reply.finish_reason,
        "usage": {
            "prompt_tokens": reply.n_prompt,
            "cached_tokens": reply.n_cached,
            "completion_tokens": reply.n_generated,
            "reasoning_tokens": reply.n_reasoning,
        },
        "timings": {
            "load_seconds": round(model.load_seconds, 4),
            "prefill_seconds": round(reply.prefill_seconds, 4),
            "decode_seconds": round(reply.decode_seconds, 4),
            "prefill_tokens_per_second": _rate(reply.n_prompt - reply.n_cached, reply.prefill_seconds),
            "decode_tokens_per_second": _rate(reply.n_generated - 1, reply.decode_seconds),
        },
    }
    return json.dumps(report, ensure_ascii=False, indent=2)


def check_effort(model: LocalModel, effort: str | None) -> None:
    """Raise RequestError if the model cannot be told how much to think, by rendering a prompt that tells it."""
    if effort is None or model.chat_format is None:
        return
    if effort not in EFFORTS:
        raise RequestError(f"the reasoning effort is {effort!r}; expected {', '.join(EFFORTS)}")
    try:
        model.chat_format.render([Message(role="user", content="Hello")], reasoning_effort=effort)
    except RequestError as error:
        raise RequestError(f"{model.name} has no reasoning effort to set: {error}") from error


def describe_speed(reply: Reply) -> str:
    """Token counts and speeds of one answer, in one line."""
    prefill, decode = (
        _rate(reply.n_prompt - reply.n_cached, reply.prefill_seconds),
        _rate(reply.n_generated - 1, reply.decode_seconds),
    )
    thought = f" ({reply.n_reasoning} of them reasoning)" if reply.n_reasoning else ""
    return (
        f"prompt {reply.n_prompt} tokens ({reply.n_cached} cached) in {reply.prefill_seconds:.2f} s "
        f"({prefill or '-'} tok/s); "
        f"answer {reply.n_generated} tokens{thought} in {reply.decode_seconds:.2f} s ({decode or '-'} tok/s)"
    )


def _messages(prompt: str, options: AnswerOptions) -> list[Message]:
    system = [Message(role="system", content=options.system)] if options.system else []
    return [*system, Message(role="user", content=prompt)]


def _limit(model: LocalModel, reply: Reply) -> str:
    if reply.n_prompt + reply.n_generated >= model.max_context:
        return f"the context of {model.max_context} tokens is full"
    return f"--max-tokens {reply.n_generated} is reached"


def _rate(n_tokens: int, seconds: float) -> float | None:
    """Tokens per second; None where there was nothing to time."""
    return round(n_tokens / seconds, 1) if n_tokens > 0 and seconds > 0 else None

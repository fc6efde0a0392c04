"""One question, one answer: what `freehold run` does when it has a prompt.

Owns the options of an answer and its report as text or JSON. Standard output carries the answer and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from freehold.terminal.console import note, write_answer
from freehold.text.chat import Message

if TYPE_CHECKING:
    from freehold.reply import Reply
    from freehold.runtime import LocalModel, SamplingOptions


@dataclass(frozen=True)
class AnswerOptions:
    """The command line's wishes for every answer; `sampling` holds only what was given."""

    system: str | None = None
    sampling: SamplingOptions = field(default_factory=lambda: {})  # type: ignore[assignment]
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    verbose: bool = False

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments for LocalModel.chat."""
        return {**self.sampling, "max_tokens": self.max_tokens, "stop": self.stop}


def ask(model: LocalModel, prompt: str, options: AnswerOptions) -> Reply:
    """Stream one answer to standard output, a line break at its end. Ctrl-C and a closed pipe cancel the generation."""
    last = "\n"
    with model.chat(_messages(prompt, options), stream=True, **options.keywords()) as stream:
        try:
            for event in stream:
                if event.text:
                    write_answer(event.text)
                    last = event.text
        finally:  # what follows, if only the shell's prompt after Ctrl-C, begins a line
            if not last.endswith("\n"):
                write_answer("\n")
        reply = stream.reply()
    if reply.finish_reason == "length":
        note(f"the answer was cut short: {_limit(model, reply)}")
    if options.verbose:
        note(f"load {model.load_seconds:.2f} s; {describe_speed(reply)}")
    return reply


def ask_json(model: LocalModel, prompt: str, options: AnswerOptions) -> str:
    """One answer as a JSON object: answer, finish_reason, usage (tokens) and timings (seconds, tokens per second)."""
    reply = model.chat(_messages(prompt, options), **options.keywords())
    report = {
        "model": model.name,
        "answer": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": {
            "prompt_tokens": reply.n_prompt,
            "cached_tokens": reply.n_cached,
            "completion_tokens": reply.n_generated,
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


def describe_speed(reply: Reply) -> str:
    """Token counts and speeds of one answer, in one line."""
    prefill, decode = (
        _rate(reply.n_prompt - reply.n_cached, reply.prefill_seconds),
        _rate(reply.n_generated - 1, reply.decode_seconds),
    )
    return (
        f"prompt {reply.n_prompt} tokens ({reply.n_cached} cached) in {reply.prefill_seconds:.2f} s "
        f"({prefill or '-'} tok/s); "
        f"answer {reply.n_generated} tokens in {reply.decode_seconds:.2f} s ({decode or '-'} tok/s)"
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

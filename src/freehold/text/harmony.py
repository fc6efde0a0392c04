"""The harmony format of the gpt-oss models: a conversation to the token ids its models were trained on.

Owns how our messages become harmony's, and which of them a prompt leaves out; docs/harmony.md describes the format. The
prompt is written as ids, piece by piece: control tokens come from here and nowhere else, so no text in a message, a
tool or an option can become one. Tests hold it to openai-harmony, token for token. Knows no models and no protocols.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from freehold.errors import RequestError, UnsupportedError
from freehold.text.answer import AnswerParser
from freehold.text.chat import Message
from freehold.text.harmony_builtins import BUILTIN_RECIPIENTS
from freehold.text.harmony_grammar import turn_grammar
from freehold.text.harmony_parser import HarmonyParser
from freehold.text.harmony_replay import Rendered, Replay
from freehold.text.harmony_system import SystemOptions, effective_effort, system_text
from freehold.text.harmony_tokens import HarmonyTokens
from freehold.text.harmony_tools import Namespace, tools_section
from freehold.text.request import ChatRequest
from freehold.text.templates import MAX_CHARS
from freehold.text.tokenizer import Tokenizer
from freehold.text.tools import Function, read_functions

_INSTRUCTING = ("system", "developer")
_SPEAKER = re.compile(r"[^\s<|\\/>]{1,64}")


class Harmony:
    """The ChatFormat of a model whose tokenizer has harmony's control tokens; thread-safe.

    stop_ids: <|return|> and <|call|>; <|end|> only ends a message, after which the same turn goes on.
    sampling: what gpt-oss's publisher recommends; files in GGUF do not say it.
    Raises UnsupportedError for a tokenizer that lacks a control token.
    """

    sampling: Mapping[str, float] = MappingProxyType({"temperature": 1.0, "top_p": 1.0, "top_k": 0})

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokens = HarmonyTokens.of(tokenizer)
        if tokens is None:
            raise UnsupportedError("the tokenizer lacks a control token of the harmony format; expected gpt-oss's own")
        self.stop_ids = tokens.stop_ids
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._replay = Replay(tokenizer, tokens)

    def effort(self, options: Mapping[str, Any]) -> str | None:
        """Low, medium or high."""
        effort = options.get("reasoning_effort")
        return effective_effort(SystemOptions.reasoning_effort if effort is None else effort)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[int]:
        """The prompt's token ids. `options` are those of SystemOptions.

        Leading system and developer messages are joined into the instructions, beside the tools; one that comes later
        stays where it is. Assistant turns with `ids` are replayed. Reasoning is left out once it has led to an answer.
        Raises RequestError for options, tools or names the format cannot hold, and for a tool message that no call and
        no name explains.
        """
        size = sum(map(_size, messages))
        if size > MAX_CHARS:
            raise RequestError(f"the conversation is {size} characters long; expected at most {MAX_CHARS}")
        functions = read_functions(tools)
        system = system_text(SystemOptions.of(options), bool(functions))
        n_leading = next((i for i, message in enumerate(messages) if message.role not in _INSTRUCTING), len(messages))
        instructions = "\n\n".join(message.content for message in messages[:n_leading] if message.content)
        writer = _Writer(self._tokenizer, self._tokens, self._replay, functions)
        writer.write("system", system)
        writer.instruct(instructions, functions)
        for message in messages[n_leading:]:
            writer.add(message)
        ids = [id for rendered in _without_stale_reasoning(writer.messages) for id in rendered.ids]
        return [*ids, self._tokens.start, *self._tokenizer.encode("assistant")] if add_generation_prompt else ids

    def render_text(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> str:
        """The prompt as text, for people to read: in it, content and control tokens look the same."""
        ids = self.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **options)
        return self._tokenizer.decode(ids)

    def parser(self, *, tools: Sequence[Mapping[str, Any]] | None = None, prompt: Sequence[int] = ()) -> AnswerParser:
        """A parser for the answer to a prompt that ended with the generation prompt, which is always the same."""
        return HarmonyParser(self._tokenizer, self._tokens, tools)

    def grammar(self, request: ChatRequest, prompt: Sequence[int] = ()) -> str | None:
        """The grammar of the turn that answers `request`, as ChatFormat says."""
        return turn_grammar(request, self._tokens)


class _Writer:
    """Writes one conversation, message by message, remembering the calls that tool messages answer."""

    def __init__(
        self, tokenizer: Tokenizer, tokens: HarmonyTokens, replay: Replay, functions: Sequence[Function]
    ) -> None:
        self.messages: list[Rendered] = []
        self._encode = tokenizer.encode
        self._tokens = tokens
        self._replay = replay
        self._offered = {function.name for function in functions}
        self._custom = {function.name for function in functions if function.is_custom}
        self._called: dict[str, _Call] = {}  # by the call's id
        self._open: list[_Call] = []  # those of the last turn that no tool message answers yet

    def write(
        self,
        role: str,
        body: str,
        *,
        name: str | None = None,
        channel: str | None = None,
        recipient: str | None = None,
        content_type: str | None = None,
    ) -> None:
        """One message. Each piece of the header is encoded by itself, as the library does: the ids depend on it."""
        tokens, encode = self._tokens, self._encode
        ids = [tokens.start, *encode(role)]
        if name:
            ids += encode(f":{name}")
        if recipient is not None:
            ids += encode(f" to={recipient}")
        if channel is not None:
            ids += [tokens.channel, *encode(channel)]
        if content_type == "json":
            ids += [*encode(" "), tokens.constrain, *encode(content_type)]
        elif content_type is not None:
            ids += encode(f" {content_type}")
        by_assistant = role == "assistant"
        ids += [tokens.message, *encode(body), tokens.call if by_assistant and recipient else tokens.end]
        self.messages.append(Rendered(ids, channel, recipient, by_assistant))

    def instruct(self, instructions: str, functions: Sequence[Function] = ()) -> None:
        """A developer message, unless it would be empty."""
        sections = [f"# Instructions\n\n{instructions}"] if instructions else []
        if functions:
            sections.append(tools_section([Namespace("functions", functions=tuple(functions))]))
        if sections:
            self.write("developer", "\n\n".join(sections))

    def add(self, message: Message) -> None:
        """One of our messages, which may be several of harmony's."""
        if message.role in _INSTRUCTING:
            self.instruct(message.content)
        elif message.role == "user":
            self.write("user", message.content, name=_speaker(message))
        elif message.role == "tool":
            call = self._answered(message)
            self.write(call.recipient, message.content, channel=call.channel, recipient="assistant")
        else:
            self._turn(message)

    def _turn(self, message: Message) -> None:
        """An assistant's turn, as sampled if that is known and fits its calls."""
        calls = [_Call.of(self._recipient(call.name)) for call in message.tool_calls]
        turn = self._replay.split(message.ids) if message.ids else None
        sampled = [_Call(said.recipient, said.channel or "") for said in turn or () if said.recipient is not None]
        # A name that had to be repaired, or a call that the caller took out, must not come back.
        if turn is None or [call.name for call in sampled] != [call.name for call in calls]:
            self._write_turn(message, calls)
        else:
            self.messages += turn
            # The result of a built-in tool goes to the channel where its call was.
            calls = [own if call.is_builtin and own.channel else call for own, call in zip(sampled, calls, strict=True)]
        self._open = calls
        ids = (call.id for call in message.tool_calls)
        self._called.update({id: call for id, call in zip(ids, calls, strict=True) if id})

    def _write_turn(self, message: Message, calls: Sequence[_Call]) -> None:
        """Reasoning, then what is said before the calls or as the answer, then the calls."""
        name = _speaker(message)
        if message.reasoning:
            self.write("assistant", message.reasoning, name=name, channel="analysis")
        if message.content or not (calls or message.reasoning):
            self.write("assistant", message.content, name=name, channel="commentary" if calls else "final")
        for call, written in zip(calls, message.tool_calls, strict=True):
            is_raw = written.is_custom or written.name in self._custom
            self.write(
                "assistant",
                written.arguments,
                name=name,
                channel=call.channel,
                recipient=call.recipient,
                content_type="code" if call.is_builtin else None if is_raw else "json",
            )

    def _answered(self, message: Message) -> _Call:
        """What a tool message answers: the call whose id it has, else the tool it names, else the next open call."""
        call = self._called.get(message.tool_call_id or "")
        if call is None and message.name:
            call = _Call.of(self._recipient(message.name))
        if call is None and not message.tool_call_id and self._open:
            call = self._open[0]
        if call is None:
            raise RequestError(
                f"a tool message has tool_call_id {message.tool_call_id!r:.80} and no name; expected the id of a call "
                f"in an earlier assistant message, or the name of the tool"
            )
        if call in self._open:
            self._open.remove(call)
        return call

    def _recipient(self, name: str) -> str:
        """How the format addresses a tool: functions in their namespace, built-in tools by the name they have."""
        if name in self._offered or not (name in BUILTIN_RECIPIENTS or name.startswith("functions.")):
            return f"functions.{name}"
        return name


@dataclass(frozen=True)
class _Call:
    """Whom a call went to and on which channel, which decide the header of its result."""

    recipient: str
    channel: str

    @classmethod
    def of(cls, recipient: str) -> _Call:
        """A call on the channel where the format has it."""
        return cls(recipient, "analysis" if recipient in BUILTIN_RECIPIENTS else "commentary")

    @property
    def name(self) -> str:
        return self.recipient.removeprefix("functions.")

    @property
    def is_builtin(self) -> bool:
        return self.recipient in BUILTIN_RECIPIENTS


def _without_stale_reasoning(messages: Sequence[Rendered]) -> list[Rendered]:
    """Leave out reasoning that has led to an answer.

    The library's rule to the letter: once the assistant's last word is an answer, the reasoning before the *first*
    answer goes. While tools are being called, all of it stays.
    """
    last = next((message for message in reversed(messages) if message.by_assistant), None)
    if last is None or last.channel != "final":
        return list(messages)
    first = next(i for i, message in enumerate(messages) if message.channel == "final")
    return [message for i, message in enumerate(messages) if i > first or not message.is_reasoning]


def _speaker(message: Message) -> str | None:
    if message.name and not _SPEAKER.fullmatch(message.name):
        raise RequestError(
            f"a {message.role} message has the name {message.name!r:.80}; expected 1 to 64 characters, no blanks and "
            f"none of < > | / \\"
        )
    return message.name


def _size(message: Message) -> int:
    calls = sum(len(call.arguments) + len(call.name) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning or "") + calls + len(message.ids or ())

"""The one internal form of a conversation: Message and ToolCall.

Owns their validation from hostile JSON (OpenAI's chat shape, which the other protocols translate to at their edge) and
the dictionary that Hugging Face chat templates expect. Knows no tokenizer, and no protocol beyond that shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, cast, get_args

from freehold.errors import RequestError

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)

_REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")
_MESSAGE_KEYS = ("role", "content", *_REASONING_KEYS, "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True)
class ToolCall:
    """A call the assistant made. `arguments` is JSON text as the model wrote it, so that nothing of it can be lost.

    is_custom: the tool takes plain text, and `arguments` is that.
    """

    name: str
    arguments: str
    id: str | None = None
    is_custom: bool = False

    @classmethod
    def from_dict(cls, data: Any, where: str = "tool call") -> ToolCall:
        """Read {"id", "type": "function", "function": {"name", "arguments"}}; arguments are JSON text or an object. Or
        {"id", "type": "custom", "custom": {"name", "input"}}.
        """
        call = _mapping(data, where)
        kind = call.get("type", "function")
        if kind not in ("function", "custom"):
            _fail(f"{where}.type", kind, "'function' or 'custom'")
        _refuse_unknown(call, ("id", "type", kind, "index"), where)
        if kind == "custom":
            return cls._from_custom(call, where)
        function = _mapping(call.get("function"), f"{where}.function")
        _refuse_unknown(function, ("name", "arguments"), f"{where}.function")
        name = _string(function, "name", f"{where}.function")
        if not name:
            _fail(f"{where}.function.name", name, "the name of a function")
        arguments = function.get("arguments", "")
        if isinstance(arguments, Mapping):
            arguments = _to_json(arguments, f"{where}.function.arguments")
        elif not isinstance(arguments, str):
            _fail(f"{where}.function.arguments", arguments, "JSON text or an object")
        return cls(name, arguments, _optional_string(call, "id", where))

    @classmethod
    def _from_custom(cls, call: Mapping[str, Any], where: str) -> ToolCall:
        custom = _mapping(call.get("custom"), f"{where}.custom")
        _refuse_unknown(custom, ("name", "input"), f"{where}.custom")
        name = _string(custom, "name", f"{where}.custom")
        if not name:
            _fail(f"{where}.custom.name", name, "the name of a tool")
        return cls(name, _string(custom, "input", f"{where}.custom"), _optional_string(call, "id", where), True)

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI shape, arguments as JSON text."""
        if self.is_custom:
            identity = {} if self.id is None else {"id": self.id}
            return {**identity, "type": "custom", "custom": {"name": self.name, "input": self.arguments}}
        return self._shaped(self.arguments)

    def to_template(self) -> dict[str, Any]:
        """The shape templates expect: arguments as an object where they are one, else as the text they are."""
        try:
            parsed = json.loads(self.arguments)
        except (ValueError, RecursionError):
            parsed = None
        return self._shaped(parsed if isinstance(parsed, dict) else self.arguments)

    def _shaped(self, arguments: Any) -> dict[str, Any]:
        identity = {} if self.id is None else {"id": self.id}
        return {**identity, "type": "function", "function": {"name": self.name, "arguments": arguments}}


@dataclass(frozen=True)
class Message:
    """One turn. `reasoning` is the assistant's thinking, kept apart from `content`; `tool_call_id` and `name` say which
    call a tool message answers. `ids` is an assistant turn exactly as sampled after the generation prompt: a format
    that can replays it, since rendering the parts again may place them otherwise. Raises RequestError for an unknown
    role.
    """

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    ids: tuple[int, ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            _fail("role", self.role, f"one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            _fail("content", self.content, "text")
        if self.role != "assistant" and (self.tool_calls or self.reasoning is not None):
            what = "tool_calls" if self.tool_calls else "reasoning"
            raise RequestError(f"a {self.role} message carries {what}; only assistant messages may")
        if self.role != "assistant" and self.ids is not None:
            raise RequestError(f"a {self.role} message carries ids; only what the model itself said has them")

    @classmethod
    def from_dict(cls, data: Any, where: str = "message") -> Message:
        """Read an OpenAI chat message. Content is text, null, or a list of {"type": "text"} parts, which are joined.

        A key that is not understood is refused unless it is null or empty: dropping it would change what was asked.
        Raises RequestError naming the place, as in "message.content[1].type".
        """
        message = _mapping(data, where)
        _refuse_unknown(message, _MESSAGE_KEYS, where)
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            _fail(f"{where}.role", role, f"one of {', '.join(ROLES)}")
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, (list, tuple)):
            _fail(f"{where}.tool_calls", calls, "a list of tool calls")
        content = message.get("content")
        if content is None and role != "assistant":
            _fail(f"{where}.content", content, "text, or a list of text parts")
        return cls(
            role=cast(Role, role),
            content=_content(content, f"{where}.content"),
            reasoning=_reasoning(message, where),
            tool_calls=tuple(
                ToolCall.from_dict(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls or ())
            ),
            tool_call_id=_optional_string(message, "tool_call_id", where),
            name=_optional_string(message, "name", where),
        )

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI shape; `from_dict` reads it back to an equal Message. Absent fields are left out."""
        return self._shaped(("reasoning",), ToolCall.to_dict)

    def to_template(self) -> dict[str, Any]:
        """The shape Hugging Face chat templates expect; reasoning comes under both names that templates read."""
        return self._shaped(("reasoning_content", "thinking"), ToolCall.to_template)

    def _shaped(
        self, reasoning_keys: tuple[str, ...], call_shape: Callable[[ToolCall], dict[str, Any]]
    ) -> dict[str, Any]:
        shaped: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            shaped.update(dict.fromkeys(reasoning_keys, self.reasoning))
        if self.tool_calls:
            shaped["tool_calls"] = [call_shape(call) for call in self.tool_calls]
        if self.tool_call_id is not None:
            shaped["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            shaped["name"] = self.name
        return shaped


def _fail(where: str, found: object, expected: str) -> NoReturn:
    shown = repr(found) if isinstance(found, (str, int, float, type(None))) else f"a {type(found).__name__}"
    raise RequestError(f"{where} is {shown[:80]}; expected {expected}")


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        _fail(where, data, "an object")
    return data


def _refuse_unknown(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key, value in data.items():
        if key not in known and value not in (None, "", [], {}, ()):
            raise RequestError(f"{where} has the key {str(key)[:80]!r}; expected only {', '.join(known)}")


def _string(data: Mapping[str, Any], key: str, where: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        _fail(f"{where}.{key}", value, "text")
    return value


def _optional_string(data: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if data.get(key) is None else _string(data, key, where)


def _reasoning(message: Mapping[str, Any], where: str) -> str | None:
    found = {key: _string(message, key, where) for key in _REASONING_KEYS if message.get(key) is not None}
    if len(set(found.values())) > 1:
        raise RequestError(f"{where} has different texts under {' and '.join(found)}; expected one of them")
    return next(iter(found.values()), None)


def _content(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, (list, tuple)):
        _fail(where, content, "text, or a list of text parts")
    return "".join(_part_text(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part_text(data: Any, where: str) -> str:
    part = _mapping(data, where)
    kind = part.get("type")
    if kind != "text":
        _fail(f"{where}.type", kind, "'text': text is all this runtime reads, no images, audio or files")
    _refuse_unknown(part, ("type", "text"), where)
    return _string(part, "text", where)


def _to_json(value: Any, where: str) -> str:
    try:
        return json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} cannot be written as JSON ({error}); expected plain JSON values") from error

"""The tools of a Responses request: namespaces taken apart, tools of OpenAI's own refused or left out.

Owns how a tool in a namespace is called towards the model, and how a call of it is shown to the client again; the tools
themselves are read by openai_shapes. Knows no items and no events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.server import openai_shapes as shapes
from freehold.server.errors import ApiError
from freehold.text.request import ToolChoice

_KEPT = ("name", "description", "parameters", "strict", "format")  # the rest is no concern of a model
_PLAIN_NAMESPACE = "functions"  # means no namespace, for the models that were trained with that one
_NO_SEARCH = "the tool web_search was left out: this server searches nothing"
_EXPECTED = "expected function, custom, or namespace with such tools; offer a function of the client's own instead"


@dataclass(frozen=True)
class Offer:
    """What a model may call. `tools` and `choice` are ChatRequest's, `shown` are the tools as the response lists them.

    origin: name towards the model -> namespace and name towards the client, of the tools in namespaces. customs: names
    of tools that take plain text.
    """

    tools: tuple[Mapping[str, Any], ...]
    choice: ToolChoice
    shown: list[dict[str, Any]]
    origin: Mapping[str, tuple[str, str]]
    customs: frozenset[str]


def flat_name(namespace: str | None, name: str) -> str:
    """The name of a tool in a namespace as the model has it."""
    if namespace is None or namespace == _PLAIN_NAMESPACE:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def read_offer(tools: Sequence[Mapping[str, Any]] | None, choice: Any, warnings: list[str]) -> Offer:
    """The tools a model may call and the choice among them. Raises ApiError 400 naming the place and the type.

    web_search, which Codex offers on its own account, is left out with a warning where other tools remain; every other
    tool of OpenAI's own is refused.
    """
    shown, flat, origin = [], [], {}
    others_remain = any(tool.get("type") != "web_search" for tool in tools or ())
    for i, tool in enumerate(tools or ()):
        where, kind = f"tools[{i}]", tool.get("type")
        if kind == "web_search" and others_remain:
            warnings.append(_NO_SEARCH)
            continue
        shown.append(_completed(tool))
        if kind == "namespace":
            for name, inner in _namespace(tool, where):
                flat.append(inner)
                origin[inner["name"]] = (tool["name"], name)
        else:
            flat.append(_read(tool, where))
    offered, chosen = shapes.read_offer(flat, choice)
    return Offer(offered, chosen, shown, origin, shapes.custom_names(offered))


def _namespace(tool: Mapping[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    """The tools of a namespace, each with its own name and the namespace's description."""
    namespace, tools, description = tool.get("name"), tool.get("tools"), tool.get("description")
    if not isinstance(namespace, str) or not isinstance(tools, list):
        raise ApiError(400, f"{where} is a namespace without name or tools; expected both", param=where)
    if not isinstance(description, (str, type(None))):
        raise ApiError(400, f"{where}.description is {description!r:.80}; expected text", param=where)
    found = []
    for i, each in enumerate(tools):
        inner = _read(each, f"{where}.tools[{i}]")
        name = inner.get("name")
        if not isinstance(name, str):
            raise ApiError(400, f"{where}.tools[{i}] has the name {name!r:.80}; expected text", param=where)
        own = inner.get("description", "")
        if description and isinstance(own, str):
            inner["description"] = f"{description}\n{own}".rstrip()
        found.append((name, {**inner, "name": flat_name(namespace, name)}))
    return found


def _read(tool: Any, where: str) -> dict[str, Any]:
    """A function or custom tool, flat, with nothing but what a model or a grammar reads."""
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind not in ("function", "custom"):
        raise ApiError(400, f"{where}.type is {kind!r:.80}, which this server has not; {_EXPECTED}", param=where)
    spec = tool.get(kind, tool)
    if not isinstance(spec, Mapping):
        raise ApiError(400, f"{where}.{kind} is {spec!r:.80}; expected an object", param=where)
    return {"type": kind, **{key: spec[key] for key in _KEPT if spec.get(key) is not None}}


def _completed(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as responses list it: what was left out is null."""
    if tool.get("type") != "function" or "function" in tool:
        return dict(tool)
    return {**dict.fromkeys(("name", "description", "parameters", "strict")), **tool}

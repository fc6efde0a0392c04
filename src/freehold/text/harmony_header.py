"""The header of a harmony message: who speaks, on which channel, to whom, in which type. Total: any header reads.

    role-or-tool [" to="recipient] [<|channel|>channel [" to="recipient]] [" "][<|constrain|>]type

Owns what the words of a header mean, and what a malformed one was meant to be. It sees text between control tokens;
which token is which, and when a header ends, is harmony_parser's business.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from freehold.text.answer import CallStart
from freehold.text.harmony_builtins import BUILTIN_RECIPIENTS

CHANNELS = ("analysis", "commentary", "final")
TYPES = ("json", "code", "text")
NAMESPACE = "functions."

Mark = Literal["role", "channel", "type", "stray"]
"""What stands before a piece of a header: its beginning, <|channel|>, <|constrain|>, or a control token that has no
business there, which ends a word all the same."""

Role = Literal["given", "due", "missing"]
"""Whether the role stands before the header, in the prompt; begins it; or should, but <|start|> has not come."""

_NOT_TOOLS = frozenset(("assistant", "user", "system", "developer", "tool", "all", *CHANNELS))
_FOREIGN_ROLES = frozenset(("user", "system", "developer", "tool"))
_CHANNEL = re.compile(rf"\s*({'|'.join(CHANNELS)})")
_RECIPIENT = re.compile(r"\s*to=([^\s{\[]*)")
_LONE_FUNCTION = re.compile(rf"\s*({re.escape(NAMESPACE)}[^\s{{\[]+)")
_TYPE = re.compile(r"\s*([^\s{\[]+)")
_KNOWN_TYPE = re.compile(rf"\s*({'|'.join(TYPES)})")
_TYPE_BEFORE_BODY = re.compile(rf"\s*({'|'.join(TYPES)})\s*(?=[\[{{\"]|$)")
_ROLE = re.compile(r"\s*(assistant|[^\s{\[]+)")


@dataclass(frozen=True)
class Header:
    """What a header says. `call` is set when it addresses a tool; `channel` is one of CHANNELS, or None.

    foreign: it claims to be somebody else's message, a tool's result for one. body: words that are the message's
    already, where <|message|> is missing. junk: words without a meaning. flawed: it is not as it should be.
    """

    channel: str | None
    call: CallStart | None
    foreign: bool
    body: str
    junk: str
    flawed: bool


def read_header(
    pieces: Sequence[tuple[Mark, str]], offered: Collection[str], *, complete: bool, role: Role = "due"
) -> Header:
    """Read a header from its pieces, in order.

    offered: names of the tools. complete: whether <|message|> followed; without it, what is no header word is body.
    """
    reader = _Reader(offered, complete, bare=len(pieces) == 1 and not complete, flawed=role == "missing")
    for mark, text in pieces:
        reader.read(mark, text, role != "given")
    return reader.header()


def may_be_header(text: str, role_written: bool) -> bool:
    """Whether `text`, at the start of a message and before any control token, can still become a header.

    Text that cannot is an answer without markup, and need not wait. After <|start|>, any word may be a role.
    """
    rest = text.lstrip()
    if role_written and not rest.startswith("assistant"):
        return True
    rest = rest.removeprefix("assistant").lstrip()
    if rest.startswith("to="):
        return True
    if channel := _CHANNEL.match(rest):
        rest = rest[channel.end() :].lstrip()
        return rest.startswith("to=") or "to=".startswith(rest)
    return any(word.startswith(rest) for word in ("assistant", "to=", *CHANNELS))


def is_header_word(text: str) -> bool:
    """Whether `text` is the beginning of a word that may stand in a header, after its role."""
    rest = text.strip()
    return rest.startswith("to=") or any(word.startswith(rest) for word in ("to=", *TYPES, *CHANNELS))


@dataclass
class _Reader:
    """Takes the pieces one after another. Of several channels the last that is known holds, of recipients the first."""

    offered: Collection[str]
    complete: bool
    bare: bool  # no control token at all: words alone do not make a channel
    role: str = "assistant"
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    texts: list[str] = field(default_factory=list)  # all but role and channel
    rest: list[str] = field(default_factory=list)  # what had no meaning in a header
    n_channels: int = 0
    flawed: bool = False

    def read(self, mark: Mark, text: str, role_written: bool) -> None:
        if mark == "channel":
            self.n_channels += 1
            self.flawed |= self.n_channels > 1
            text = self._take_channel(text)
        elif mark == "role":
            text = self._take_role(text, role_written)
        self.texts.append(text)
        if mark == "type":
            text = self._take_type((_TYPE if self.complete else _KNOWN_TYPE).match(text), text)
        text = self._take_recipients(text)
        if self.complete:
            self._take_words(text)
        else:
            if self.recipient is not None:
                text = self._take_type(_TYPE_BEFORE_BODY.match(text), text)
            self.rest.append(text)

    def header(self) -> Header:
        foreign = self._settle_role()
        call = None if foreign else self._call()
        unreadable = not foreign and call is None and self.channel is None
        rest = [text for text in (self.texts if unreadable and not self.complete else self.rest) if text.strip()]
        body = "" if self.complete else "".join(rest).lstrip(" ")
        junk = " ".join(rest) if self.complete else ""
        flawed = self.flawed or bool(junk) or not self.complete or self.channel is None
        return Header(self.channel, call, foreign, body, junk, flawed)

    def _take_role(self, text: str, role_written: bool) -> str:
        found = _ROLE.match(text)
        if found is None:
            return text
        word, after = found[1], text[found.end() :]
        if word == "assistant" and (role_written or self.complete):
            text = after
        elif role_written and word not in CHANNELS and not word.startswith("to="):
            self.role, text = word, after
        if not self.bare and _CHANNEL.match(text):
            self.flawed = True  # a channel's name without the token before it
            text = self._take_channel(text)
        return text

    def _take_channel(self, text: str) -> str:
        found = _CHANNEL.match(text)
        if found is None:
            return text
        self.channel = found[1]
        after = text[found.end() :]
        self.flawed |= bool(after) and not after[0].isspace()  # the next word is glued to the name
        return after

    def _take_type(self, found: re.Match[str] | None, text: str) -> str:
        if found is None or self.content_type is not None:
            return text
        self.content_type = found[1]
        return text[found.end() :]

    def _take_recipients(self, text: str) -> str:
        while found := _RECIPIENT.match(text):
            self._address(found[1])
            text = text[found.end() :]
        if self.recipient is None and not self.complete and (found := _LONE_FUNCTION.match(text)):
            self.flawed = True
            self._address(found[1])
            text = text[found.end() :]
        return text

    def _take_words(self, text: str) -> None:
        for word in text.split():
            if word.startswith("to="):
                self._address(word.removeprefix("to="))
            elif self.recipient is None and (word in self.offered or word.startswith(NAMESPACE)):
                self.flawed = True
                self._address(word)
            elif self.content_type is None and (self.recipient is not None or word in TYPES):
                self.content_type = word
            else:
                self.rest.append(word)

    def _address(self, recipient: str) -> None:
        if self.recipient is None and recipient:
            self.recipient = recipient
        else:
            self.flawed |= recipient != self.recipient

    def _settle_role(self) -> bool:
        """Whether the message is somebody else's. A tool's name in the role's place, with nobody addressed, calls it:
        a result would be addressed to the assistant.
        """
        if self.role == "assistant":
            return False
        self.flawed = True
        is_tool = self.role in self.offered or self.role.startswith(NAMESPACE) or self.role in BUILTIN_RECIPIENTS
        if is_tool and self.recipient is None:
            self.recipient = self.role
            return False
        if is_tool or self.role in _FOREIGN_ROLES:
            return True
        self.rest.insert(0, self.role)
        self.texts.insert(0, self.role)
        return False

    def _call(self) -> CallStart | None:
        """The call this header begins, or None when its recipient is no tool."""
        recipient = self.recipient
        if recipient is None:
            return None
        name = self._unglued(recipient.removeprefix(NAMESPACE) or recipient)
        known = name in self.offered or recipient.startswith(NAMESPACE) or recipient in BUILTIN_RECIPIENTS
        if not known and (self.bare or name in _NOT_TOOLS):
            return None
        return CallStart(name, self.channel, self.content_type, recipient)

    def _unglued(self, name: str) -> str:
        """`name` without a content type or channel written onto its end, if that, and not the whole, was offered."""
        if name not in self.offered:
            for word in (*TYPES, *CHANNELS):
                if name.removesuffix(word) in self.offered:
                    self.flawed = True
                    if word in TYPES and self.content_type is None:
                        self.content_type = word
                    return name.removesuffix(word)
        return name

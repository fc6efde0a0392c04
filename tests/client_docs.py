"""The snippets of docs/clients.md, so that what people copy is what the tests run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "clients.md"
ADDRESS = "http://127.0.0.1:11435"
"""Where the page says that the server is."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"`([^`\s]+\.(?:toml|json|yaml))`")


@dataclass(frozen=True)
class Snippet:
    """A fenced block: the heading it stands under, its language, the file it goes into ("" for none), its text."""

    section: str
    language: str
    file: str
    text: str

    def at(self, url: str) -> str:
        """The text with the page's address replaced by another one."""
        return self.text.replace(ADDRESS, url)


@cache
def snippets() -> tuple[Snippet, ...]:
    """All snippets, in order."""
    found = []
    for part in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE):
        section, before = part.split("\n", 1)[0], 0
        for match in _FENCE.finditer(part):
            *_, words = part[before : match.start()].strip().split("\n\n")
            file = _NAME.findall(words)[-1:]
            found.append(Snippet(section, match[1], "".join(file), match[2]))
            before = match.end()
    return tuple(found)


def snippet(section: str, language: str, number: int = 0) -> Snippet:
    """A section's snippet in a language; the first, unless another number is asked for."""
    return [each for each in snippets() if (each.section, each.language) == (section, language)][number]


def exports(script: str) -> dict[str, str]:
    """What a script exports, and what stands before its commands."""
    found = {}
    for line in script.splitlines():
        words = shlex.split(line)
        for word in words[1:] if words[:1] == ["export"] else words:
            name, sign, value = word.partition("=")
            if not (sign and re.fullmatch("[A-Z][A-Z0-9_]*", name)):
                break
            found[name] = value
    return found


def commands(script: str) -> list[list[str]]:
    """The commands of a script, without the variables before them."""
    found = []
    for line in script.splitlines():
        words = shlex.split(line)
        while words and re.match("[A-Z][A-Z0-9_]*=", words[0]):
            words.pop(0)
        if words and words[0] != "export":
            found.append(words)
    return found

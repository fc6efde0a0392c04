"""What a client may call a model.

Owns the reading of a request's "model": names and aliases in any case, the spellings of other tools, and what is said
when there is no such model. Names are compared, never opened: no path of a request reaches the file system.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from freehold.hub.catalog import find_entry
from freehold.server.errors import ApiError
from freehold.server.source import ModelSource

_LISTED = 20  # names in a message
_SHOWN = 100  # characters of a wrong name


def resolve(word: str, sources: Iterable[ModelSource], default: str | None = None) -> str:
    """The name of the model that `word` means; `default` answers to every other word.

    ":latest" adds nothing to a name, and neither does what stands before a slash ("openai/gpt-oss-20b", or the path
    under which another server has the model) or a final ".gguf". Raises ApiError 404 with the nearest name and a list.
    """
    known = list(sources)
    names = {alias.lower(): source.name for source in known for alias in source.aliases}
    names.update({source.name.lower(): source.name for source in known})
    for spelling in _spellings(word):
        if spelling in names:
            return names[spelling]
    if default is not None:
        return default
    raise ApiError(404, _unknown(word, list(names), known), code="model_not_found", param="model")


def _spellings(word: str) -> list[str]:
    plain = word.strip().lower()
    found = [plain, plain.removesuffix(":latest")]
    last = plain.replace("\\", "/").rpartition("/")[2].removesuffix(":latest").removesuffix(".gguf")
    return [*found, last]


def _unknown(word: str, names: list[str], known: list[ModelSource]) -> str:
    near = difflib.get_close_matches(word.lower()[:_SHOWN], names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    listed = ", ".join(source.name for source in known[:_LISTED]) or "none"
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    entry = next((entry for spelling in _spellings(word) if (entry := find_entry(spelling))), None)
    fetch = f" `freehold pull {entry.name}` fetches {entry.name}." if entry and entry.name not in names else ""
    return f"no model {word[:_SHOWN]!r} here{hint}{fetch} Served: {listed}{more}."

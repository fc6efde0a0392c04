"""What a source says it has of a model: the files to fetch and the facts to record.

The one form in which huggingface.py, modelscope.py and folder.py answer, and sources.py asks. Fetches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.errors import DownloadError
from freehold.hub.remote import RemoteFile
from freehold.hub.selection import Selection, flat_name
from freehold.hub.web import WebClient


@dataclass(frozen=True)
class Listing:
    """A model at a source. client fetches the files; None if all are on this machine.

    revision is the commit, where the source has commits. licence is the publisher's word for it, or empty.
    """

    selection: Selection
    files: Sequence[RemoteFile]
    source: str
    revision: str = ""
    licence: str = ""
    client: WebClient | None = None


def stored_names(selection: Selection, where: str) -> dict[str, str]:
    """Path at the source -> name in the store, for every file selected. DownloadError if two would be one."""
    names = {path: flat_name(path, where) for path in selection.names}
    if len({name.lower() for name in names.values()}) != len(names):
        raise DownloadError(f"{where} has two files of one name in different folders: {', '.join(sorted(names))[:200]}")
    return names


def printable(text: object, limit: int = 200) -> str:
    """A foreign word, fit to be recorded and shown; empty if it is no text."""
    return "".join(char for char in text if char.isprintable())[:limit] if isinstance(text, str) else ""

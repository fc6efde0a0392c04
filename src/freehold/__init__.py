"""Freehold runs open-weight language models on the processor you own.

Owns the public names, few and sorted. They are imported on first use (PEP 562), so that `import freehold` stays a
blink: numpy, the tokenizer and the kernels come with the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from freehold.errors import FreeholdError

if TYPE_CHECKING:
    from freehold.loading import load
    from freehold.reply import Reply, Stream
    from freehold.runtime import LocalModel
    from freehold.text.chat import Message
    from freehold.text.request import Grammar, NamedTool

__version__ = "0.1.0"

__all__ = [
    "FreeholdError",
    "Grammar",
    "LocalModel",
    "Message",
    "NamedTool",
    "Reply",
    "Stream",
    "__version__",
    "load",
]

_HOMES = {
    "Grammar": "freehold.text.request",
    "LocalModel": "freehold.runtime",
    "Message": "freehold.text.chat",
    "NamedTool": "freehold.text.request",
    "Reply": "freehold.reply",
    "Stream": "freehold.reply",
    "load": "freehold.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'freehold' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

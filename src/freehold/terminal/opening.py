"""Loading a model as a command does: with progress and notes on standard error.

Also reads the request of `freehold run`, which must know the models' names to tell a model from a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from freehold.errors import FreeholdError
from freehold.hub import Store, resolve
from freehold.hub.catalog import load_catalog
from freehold.loading import load
from freehold.models import Precision
from freehold.models.rounding import Rounding
from freehold.runtime import LocalModel
from freehold.terminal.console import Stages, note
from freehold.terminal.words import Request, join_prompt, read_piped, read_words


def read_request(words: Sequence[str], model: str | None) -> Request:
    """Model and whole prompt from the arguments and a piped standard input; remarks go to standard error."""
    names = [name for entry in load_catalog().values() for name in (entry.name, *entry.aliases)]
    request = read_words(words, model, _is_model, names)
    for remark in request.notes:
        note(remark)
    return Request(request.model, join_prompt(request.prompt, read_piped(note)))


def open_model(
    model: str | None,
    *,
    precision: Precision,
    weights: Rounding = "auto",
    measure: bool = True,
    context: int | None = None,
    threads: int | None = None,
    conversations: int = 1,
    prefix_cache: bool = True,
) -> LocalModel:
    """freehold.load with a progress display; the notes of the load are printed."""
    with Stages() as shown:
        loaded = load(
            model,
            precision=precision,
            weights=weights,
            measure_rounding=measure,
            context=context,
            threads=threads,
            conversations=conversations,
            prefix_cache=prefix_cache,
            progress=shown,
            note=note,
        )
    if loaded.plan.note:
        note(loaded.plan.note)
    return loaded


def _is_model(word: str) -> bool:
    try:
        resolve(word, Store())
    except FreeholdError:  # a damaged store is reported when the model is loaded, not while words are sorted
        return False
    return True

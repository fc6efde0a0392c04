"""What the rounding of weights costs, for whoever asked for it: measured once per model, remembered, in a sentence.

Owns the text that it is measured on, the note beside the packed weights, and the words. The note is hostile until
checked; whatever is wrong with it, or with the folder, ends in measuring again. Knows not how weights are rounded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from freehold.errors import FreeholdError
from freehold.hub import Store
from freehold.hub.packed import fingerprint, packed_place
from freehold.kernels import PACKED_LAYOUT
from freehold.models.divergence import RoundingCost
from freehold.models.rounding import EXPLICIT, Rounding

PASSAGE = Path(__file__).with_name("rounding_passage.txt")
"""English, code and Chinese, written for this; some 150 tokens for a vocabulary that knows all three."""

MAX_TOKENS = 256
"""A vocabulary that knows little makes more of the passage; what is beyond this is left out."""

_MAX_NOTE_BYTES = 1 << 16

Measure = Callable[[Sequence[int]], RoundingCost]


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def add_bos(self) -> bool: ...

    def encode(self, text: str) -> list[int]: ...


class CostNote:
    """The costs that were measured for one model's weights, by what rounded them. Reading and writing never raise."""

    def __init__(self, model: Path, store: Store, policy: str) -> None:
        """`policy`: equal texts, equal rounding of every tensor."""
        self._model, self._store = model, store
        whole = f"{policy}; layout {PACKED_LAYOUT}; ".encode() + PASSAGE.read_bytes()
        self._key = hashlib.sha256(whole).hexdigest()

    def read(self) -> RoundingCost | None:
        """What was measured before of these weights, rounded like this."""
        with suppress(FreeholdError, OSError):
            return _cost(self._costs().get(self._key))
        return None

    def write(self, cost: RoundingCost) -> None:
        """Keep it, together with those of other roundings."""
        with suppress(FreeholdError, OSError):  # it will be measured again
            place = packed_place(self._model, self._store)
            with place.writing() as ours:
                if not ours:
                    return
                note = {"source": self._source(), "costs": {**self._costs(), self._key: asdict(cost)}}
                unfinished = place.costs.with_name(f"{place.costs.name}.part")
                unfinished.unlink(missing_ok=True)  # of a killed process, or a link of somebody else's
                try:
                    with unfinished.open("x", encoding="utf-8") as file:
                        json.dump(note, file)
                    os.replace(unfinished, place.costs)
                finally:
                    unfinished.unlink(missing_ok=True)

    def _source(self) -> str:
        return fingerprint(self._model, self._store)

    def _costs(self) -> dict[str, Any]:
        """The note's costs, unchecked; none if there is no note, or one of other files."""
        path = packed_place(self._model, self._store).costs
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_NOTE_BYTES:
            return {}
        try:
            note = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return {}
        if not isinstance(note, dict) or note.get("source") != self._source():
            return {}
        costs = note.get("costs")
        return costs if isinstance(costs, dict) else {}


def report_rounding(
    rounded: str,
    rounding: Rounding,
    tokenizer: Encoder | None,
    measure: Measure | None,
    costs: CostNote | None,
    tell: Callable[[str], None] | None = None,
) -> str:
    """`rounded`, which is what Residence says of the rounding, with what it costs where that was asked for.

    measure: gives the cost on a text; None if that is not wanted. costs: where it may be known from before, and is
    kept. tell: hears the sentence, if rounding was asked for.
    """
    if rounding not in EXPLICIT:
        return rounded
    said = _sentence(rounded, rounding, tokenizer, measure, costs)
    if tell is not None:
        tell(said)
    return said


def _sentence(
    rounded: str, rounding: Rounding, tokenizer: Encoder | None, measure: Measure | None, costs: CostNote | None
) -> str:
    if not rounded:
        return (
            f"{rounding} rounds nothing here: what is quantised already, and the reference precision, stay as they are"
        )
    known = costs.read() if costs else None
    if known is None and measure is not None:
        if tokenizer is None:
            return f"{rounded}; what that costs is not measured, because the checkpoint has no tokenizer"
        known = measure(_passage_ids(tokenizer))
        if costs:
            costs.write(known)
    return rounded if known is None else f"{rounded}: {_words(known)}"


def _passage_ids(tokenizer: Encoder) -> list[int]:
    start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    return (start + tokenizer.encode(PASSAGE.read_text("utf-8")))[:MAX_TOKENS]


def _words(cost: RoundingCost) -> str:
    return f"KL {cost.kl:.2g} nats, same first choice {100 * cost.agreement:.0f} % ({cost.n_tokens} tokens)"


def _cost(value: Any) -> RoundingCost | None:
    """A cost from the note, or None for what is none."""
    if not isinstance(value, dict) or set(value) != {"kl", "agreement", "n_tokens"}:
        return None
    kl, agreement, n_tokens = value["kl"], value["agreement"], value["n_tokens"]
    if not (isinstance(kl, float) and isinstance(agreement, float) and type(n_tokens) is int):
        return None
    sound = 0 <= kl < 1e6 and 0 <= agreement <= 1 and 0 < n_tokens < 1 << 20
    return RoundingCost(kl, agreement, n_tokens) if sound else None

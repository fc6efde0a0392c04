"""Responses that were asked to be kept: for previous_response_id, for references to items, to be fetched again.

Owns the memory and its bounds; nothing is written to disk. A response carries the whole conversation that led to it, so
it can be continued when those before it are gone; what conversations have in common is kept once and counted once. Only
requests of the same namespace find it. Belongs to one event loop.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.server.responses_items import AnyItem
from freehold.server.sse import dumps

_ITEM_BYTES = 1024  # what Python spends on an item besides its text
_REFERENCE_BYTES = 16  # and on an item in one more conversation


@dataclass(frozen=True)
class StoreLimits:
    """max_responses and max_bytes are of all namespaces together; max_age in seconds. Those used last stay longest."""

    max_responses: int = 4096
    max_bytes: int = 256 * 2**20
    max_age: float = 24 * 3600.0


@dataclass(frozen=True, eq=False)
class StoredItem:
    """An item of a conversation: as it is read, and as the client is shown it, which has its id."""

    item: AnyItem
    shown: Mapping[str, Any]
    n_bytes: int

    @classmethod
    def of(cls, item: AnyItem, shown: Mapping[str, Any]) -> StoredItem:
        return cls(item, shown, _ITEM_BYTES + len(dumps(shown)))

    @property
    def id(self) -> str:
        return str(self.shown["id"])


@dataclass(frozen=True, eq=False)
class StoredResponse:
    """A response, the conversation it answered, and what it added to it."""

    response: Mapping[str, Any]
    input: Sequence[StoredItem]
    output: Sequence[StoredItem]

    @property
    def conversation(self) -> list[StoredItem]:
        """All items up to the end of this response."""
        return [*self.input, *self.output]


@dataclass(frozen=True)
class _Entry:
    stored: StoredResponse
    n_bytes: int  # without the items
    kept_at: float


class ResponseStore:
    """A bounded store. What does not fit at all is not kept."""

    def __init__(self, limits: StoreLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or StoreLimits()
        self.n_bytes = 0
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()  # by namespace and id, used last at the end
        self._uses: Counter[tuple[str, StoredItem]] = Counter()
        self._items: dict[tuple[str, str], StoredItem] = {}  # by namespace and id, the newest of that id

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, namespace: str, stored: StoredResponse) -> None:
        """Keep a response; others go where it needs the room."""
        key, conversation = (namespace, stored.response["id"]), stored.conversation
        self._drop(key)
        n_bytes = len(dumps(stored.response)) + _REFERENCE_BYTES * len(conversation)
        if n_bytes + sum(item.n_bytes for item in set(conversation)) > self.limits.max_bytes:
            return
        self._entries[key] = _Entry(stored, n_bytes, self._clock())
        self.n_bytes += n_bytes
        for item in conversation:
            if not self._uses[namespace, item]:
                self.n_bytes += item.n_bytes
            self._uses[namespace, item] += 1
            self._items[namespace, item.id] = item
        while len(self._entries) > self.limits.max_responses or self.n_bytes > self.limits.max_bytes:
            self._drop(next(iter(self._entries)))

    def get(self, namespace: str, id: str) -> StoredResponse | None:
        """A response of this namespace, if it is still there."""
        self._expire()
        entry = self._entries.get((namespace, id))
        if entry is None:
            return None
        self._entries.move_to_end((namespace, id))
        return entry.stored

    def item(self, namespace: str, id: str) -> StoredItem | None:
        """An item of a conversation of this namespace; of several with one id, the newest."""
        self._expire()
        return self._items.get((namespace, id))

    def delete(self, namespace: str, id: str) -> bool:
        """Forget a response. Whether it was there."""
        self._expire()
        return self._drop((namespace, id))

    def _expire(self) -> None:
        oldest = self._clock() - self.limits.max_age
        for key in [key for key, entry in self._entries.items() if entry.kept_at < oldest]:
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        namespace = key[0]
        self.n_bytes -= entry.n_bytes
        for item in entry.stored.conversation:
            self._uses[namespace, item] -= 1
            if not self._uses[namespace, item]:
                del self._uses[namespace, item]
                self.n_bytes -= item.n_bytes
                if self._items.get((namespace, item.id)) is item:
                    del self._items[namespace, item.id]
        return True

"""Whose turn it is: a bounded line in front of a model, fair between namespaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairQueue:
    """Lets so many requests in at once."""

    def check(self) -> None:
        """Raises ApiError 429 if the line is full."""

    @asynccontextmanager
    async def turn(self, namespace: str) -> AsyncIterator[None]:
        """Wait for a place; it is given back at the end."""
        yield

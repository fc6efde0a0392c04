"""What the server counts, in Prometheus's form."""

from __future__ import annotations

from freehold.reply import Reply


class Metrics:
    """Counters of one server."""

    def answered(self, model: str, reply: Reply, seconds: float) -> None:
        """An answer ended."""

    def failed(self, path: str, status: int) -> None:
        """A request was answered with an error."""

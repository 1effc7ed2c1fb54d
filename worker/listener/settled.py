"""Which dead letters the user's result backend knows of.

A dead letter stays until somebody drops it or sends it again, and the listener looks at all of them
whenever one has come: each is told once, and not again by the next listener.
"""

import json
from collections.abc import Collection
from pathlib import Path

from taskiq_supervise.ipc import Ticket


class Settled:
    """A small file beside the queue, replaced whole. One writer: the listener with the baton."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            pairs = json.loads(path.read_bytes())
            self._known = {(int(slot), int(generation)) for slot, generation in pairs}
        except (FileNotFoundError, ValueError, TypeError):  # of no version, or the first
            self._known = set()

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket[:2] in self._known

    def add(self, ticket: Ticket) -> None:
        self._known.add((ticket.slot, ticket.generation))
        self._write()

    def keep(self, tickets: Collection[Ticket]) -> None:
        """Forgets all others: they are dead letters no more."""
        kept = self._known & {ticket[:2] for ticket in tickets}
        if kept != self._known:
            self._known = kept
            self._write()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(sorted(self._known)))
        temporary.replace(self._path)

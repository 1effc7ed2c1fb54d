"""Inspection: what can be seen of messages, and done with them, without having taken them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskiq_supervise.ipc.errors import LeaseLost, QueueError, UnknownTask
from taskiq_supervise.ipc.member import Member
from taskiq_supervise.ipc.model import (
    MessageState,
    MessageView,
    Outcome,
    OutcomeKind,
    Ticket,
)
from taskiq_supervise.ipc.outcomes import outcome_of, view_of
from taskiq_supervise.ipc.parts import PLAIN, assemble
from taskiq_supervise.ipc.word import generation_of, request_file, result_file, state_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

LONGEST = 2.0**33
"""Seconds: as Unix time the year 2242, and well within 64 bits of nanoseconds."""


class Inspection(Member):
    """A member that looks at messages."""

    # ---- outcomes ----

    def find(self, task_id: str) -> Ticket:
        """The newest message with this id. UnknownTask: there is none."""
        found = self.core.find(task_id.encode())
        if found is None:
            raise UnknownTask(
                f"task {task_id!r} is not in queue {self.name!r}: it was never sent, "
                "or its result has expired"
            )
        return Ticket(*found, task_id)

    def outcome(self, task: str | Ticket) -> Outcome | None:
        """How the task ended; None while it has not. UnknownTask: it is not in the queue (any
        more)."""
        ticket = task if isinstance(task, Ticket) else self.find(task)
        while True:
            try:
                return self.outcome_at(ticket)
            except LookupError:
                # Its slot is used again. The id may have come back in another one.
                again = self.find(ticket.task_id)
                if again == ticket:
                    raise UnknownTask(
                        f"task {ticket.task_id!r} left queue {self.name!r} just now"
                    ) from None
                ticket = again

    def outcome_at(self, ticket: Ticket) -> Outcome | None:
        """The same for this very message. LookupError: it has left its slot."""
        found = self.core.outcome(ticket.slot, ticket.generation)
        if found is None:
            return None
        kind, attempts, death, _, form, data, woken = found
        buffers: tuple[memoryview, ...] = ()
        if form != PLAIN:
            file = result_file(ticket.slot, ticket.generation, attempts)
            try:
                data, buffers = self.assembled(form, data, file)
            except FileNotFoundError:
                raise LookupError("the outcome has left its slot") from None
            if generation_of(self.core.word(ticket.slot)) != ticket.generation:
                raise LookupError("the outcome has left its slot")
        if woken:
            self.ring_watchers(woken)
        return outcome_of(ticket.task_id, kind, attempts, death, data, buffers)

    @property
    def result_ttl(self) -> float:
        """Seconds that outcomes are kept; 0: until their room is needed. One value per queue."""
        return self.core.result_ttl / 1e9

    @result_ttl.setter
    def result_ttl(self, seconds: float) -> None:
        if not 0 <= seconds <= LONGEST:
            raise QueueError(f"result_ttl {seconds}: use seconds from 0 to {LONGEST:.0f}")
        self.core.result_ttl = int(seconds * 1e9)
        self.ring_custodian()

    # ---- looking at others' messages ----

    def messages(self, states: Container[MessageState] | None = None) -> Iterator[MessageView]:
        """What is in the queue now, the oldest first."""
        found = []
        for slot in range(self.geometry.slots):
            seen = self.core.look(slot)
            if seen is not None and (states is None or MessageState(state_of(seen[0])) in states):
                found.append(view_of(self.core, slot, seen))
        found.sort(key=lambda view: view.created)
        yield from found

    def view(self, ticket: Ticket) -> MessageView:
        """What can be seen of this message. UnknownTask: it has left."""
        seen = self.core.look(ticket.slot)
        if seen is None or generation_of(seen[0]) != ticket.generation:
            raise UnknownTask(f"task {ticket.task_id!r} has left queue {self.name!r}")
        return view_of(self.core, ticket.slot, seen)

    def peek(self, ticket: Ticket) -> tuple[bytes, tuple[memoryview, ...]]:
        """A message's payload and buffers, without taking it. UnknownTask: it has left, or ended
        with an outcome."""
        while True:
            word = self.core.word(ticket.slot)
            state = state_of(word)
            if generation_of(word) != ticket.generation or state == MessageState.DONE:
                break
            try:
                form, stored = self.core.peek(ticket.slot, word)
                file = request_file(ticket.slot, ticket.generation)
                payload = self.assembled(form, stored, file)
            except (LeaseLost, FileNotFoundError):
                if self.core.word(ticket.slot) == word:
                    break
                continue  # claimed, or moved on, in between
            return payload
        raise UnknownTask(f"task {ticket.task_id!r} has left queue {self.name!r}")

    def drop(self, ticket: Ticket) -> None:
        """Forget a dead letter or an outcome. UnknownTask: there is none (any more)."""
        if not self.core.forget_outcome(self.participant, ticket.slot, ticket.generation, False):
            raise UnknownTask(f"task {ticket.task_id!r} has no outcome in queue {self.name!r}")
        self.sweep_files()
        self.ring_watchers(self.core.call_next())

    def discard(self, ticket: Ticket) -> bool:
        """End a message that waits; those who wait for it learn it. False: it waits no more."""
        word = self.core.take(self.participant, ticket.slot, ticket.generation)
        if word is None:
            return False
        try:
            woken = self.core.finish(self.participant, ticket.slot, word, OutcomeKind.DISCARDED)
        except LeaseLost:
            return False
        self.files.drop(request_file(ticket.slot, ticket.generation))
        self.ring_watchers(woken)
        return True

    def assembled(
        self, form: int, stored: bytes, file: str
    ) -> tuple[bytes, tuple[memoryview, ...]]:
        """Payload and buffers of what is stored so; `file` is mapped if they lie there."""
        return assemble(form, stored, lambda lengths: self.files.map(file, lengths))

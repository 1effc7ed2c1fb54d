"""Storage: payloads and results on their way into slots, blocks and files.

What fits goes into its slot or a block. What does not, or finds no block of its size free and is
worth a file, goes into one beside the segment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskiq_supervise.ipc.errors import FilesFull, QueueFull
from taskiq_supervise.ipc.inspection import Inspection
from taskiq_supervise.ipc.model import Role
from taskiq_supervise.ipc.parts import arrange
from taskiq_supervise.ipc.word import (
    attempt_of,
    generation_of,
    parsed_file,
    request_file,
    result_file,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from taskiq_supervise.ipc.member import Entry

_WORTH_A_FILE = 16_384
_ENVELOPE = 256
"""Bytes: what may go into a file for want of a block, and what stays in the segment then."""

_MOST_LISTED = 16
"""Buffers whose lengths fit into such an envelope."""


def _is_worth_a_file(size: int, buffers: Sequence[Buffer]) -> bool:
    return size >= _WORTH_A_FILE and len(buffers) <= _MOST_LISTED


class Storage(Inspection):
    """A member that writes payloads and results."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry)
        self._block = max(size for size, _ in self.geometry.blocks)
        self.is_privileged = entry.role is Role.WORKER
        """Its puts may take the slots that are kept for redelivery."""
        self._checked = self.core.is_checked()
        self._most_in_files = self.files.capacity() // 4
        """Bytes. Results make room for results from here on, requests until the disk is full."""

    def _store(
        self,
        task_id: str,
        payload: Buffer,
        buffers: Sequence[Buffer],
        priority: int,
        max_deliveries: int,
        due_ns: int,
        expires_ns: int,
        sender: tuple[bytes, int] | None,
    ) -> tuple[int, int, int, int]:
        """Slot, generation, sleeper to ring, whether to ring the custodian."""
        checked = self._checked
        form, stored, outside, size = arrange(payload, buffers, self._block, checked=checked)
        more = (priority, max_deliveries, self.is_privileged, due_ns, expires_ns)
        if not outside:
            try:
                if sender is None:
                    return self.core.put(self.participant, task_id, stored, form, size, *more)
                return self.core.put(self.participant, task_id, stored, form, size, *more, *sender)
            except QueueFull:
                if not _is_worth_a_file(size, buffers):
                    raise
            form, stored, outside, size = arrange(payload, buffers, _ENVELOPE, checked=checked)
        slot, word = self.core.reserve(self.participant, task_id, stored, form, size, *more)
        generation = generation_of(word)
        try:
            # Before the commit: a message that can be seen has its payload.
            self._write_file(request_file(slot, generation), outside)
        except BaseException:
            self.core.give_up(self.participant, slot, word)
            raise
        return slot, generation, *self.core.commit(self.participant, slot, word, *(sender or ()))

    def _store_result(
        self, slot: int, word: int, result: Buffer, buffers: Sequence[Buffer]
    ) -> tuple[int, ...]:
        """Completes the lease; returns the watchers to ring."""
        form, stored, outside, size = arrange(result, buffers, self._block)
        if not outside:
            try:
                return self.core.complete(self.participant, slot, word, stored, form)
            except QueueFull:
                if not _is_worth_a_file(size, buffers):
                    raise
            form, stored, outside, size = arrange(result, buffers, _ENVELOPE)
        name = result_file(slot, generation_of(word), attempt_of(word))
        while self.files.total_bytes() + size > self._most_in_files and self._forget_a_file():
            self.sweep_files()
        self._write_file(name, outside)
        try:
            return self.core.complete(self.participant, slot, word, stored, form)
        except BaseException:
            self.files.drop(name)
            raise

    def _write_file(self, name: str, parts: Sequence[memoryview]) -> None:
        """Outcomes that lie in files make room for it, the oldest first."""
        while True:
            try:
                self.files.write(name, parts)
            except FilesFull:
                self.sweep_files()
                if not self._forget_a_file():
                    raise
            else:
                return

    def _forget_a_file(self) -> bool:
        """The oldest outcome in a file that nobody waits for. False: there is none."""
        outcomes = []
        for name in self.files.names():
            parsed = parsed_file(name)
            if parsed is None or parsed[2] is None or parsed[0] >= self.geometry.slots:
                continue
            seen = self.core.look(parsed[0])
            if seen is not None and generation_of(seen[0]) == parsed[1]:
                outcomes.append((seen[3], *parsed[:2], name))
        for _, slot, generation, name in sorted(outcomes):
            if self.core.forget_outcome(self.participant, slot, generation, True):
                self.files.drop(name)
                return True
        return False

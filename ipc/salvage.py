"""After a reboot: the messages of a queue whose folder lies on a disk.

Its segment is of another boot. What it holds was written by processes that are gone, and a crash of
the machine may have torn it; so each message is believed only if its checksum fits. Those that
wait, or were being run when the machine went down, go into a new segment of the same size, dead
letters with them; outcomes do not, nobody waits for them any more. The new segment takes the old
one's name in one step. Nobody else looks at either meanwhile: the caller holds the folder's lock.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.access import Access
from taskiq_supervise.ipc.errors import LeaseLost, QueueFull, SegmentError
from taskiq_supervise.ipc.files import PayloadFiles
from taskiq_supervise.ipc.model import MessageState
from taskiq_supervise.ipc.parts import IN_FILE, file_parts, is_whole
from taskiq_supervise.ipc.word import attempt_of, generation_of, request_file, state_of

if TYPE_CHECKING:
    from pathlib import Path

    from taskiq_supervise.ipc._core import Core, Salvaged

logger = logging.getLogger(__name__)

_LONGEST_TTL = 366 * 86_400 * 10**9
"""Nanoseconds: a longer one is taken for damage."""

_ME = 1
"""The participant in whose name the new segment is filled. Should it die later, as somebody else,
its repair finds nothing to do."""


@dataclass
class Findings:
    """How many messages were found.

    Attributes:
        kept: those that wait or were being run; they are delivered again.
        dead: dead letters, kept too.
        ended: outcomes, and what had been acknowledged before its result was saved.
        damaged: those that are not whole; they are lost.
    """

    kept: int = 0
    dead: int = 0
    ended: int = 0
    damaged: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kept} messages and {self.dead} dead letters were kept, "
            f"{self.ended} outcomes and {self.damaged} damaged messages were not"
        )


def carry_over(old: Core, new: Core, files: Path, aside: Path) -> Findings:
    """Fill a new segment that nobody sees yet.

    Args:
        files: the folder of payload files; made anew.
        aside: where the old one has been put, or will be.
    """
    if files.exists():
        if aside.exists():  # somebody was interrupted over this very thing
            shutil.rmtree(files)
        else:
            files.rename(aside)
    _carry_settings(old, new)
    found = Findings()
    whole: list[tuple[int, int, Salvaged]] = []
    mode = Access.inside(files.parent).folder_mode
    from_files, to_files = PayloadFiles(aside, mode), PayloadFiles(files, mode)
    try:
        for slot in range(old.geometry()[0]):
            try:
                message = old.salvage(slot)
            except LeaseLost:
                found.damaged += 1
                continue
            state = state_of(old.word(slot))
            if message is not None and state != MessageState.ACKED:
                whole.append((message[7], slot, message))  # by the time it was made
            else:
                found.ended += state in (MessageState.DONE, MessageState.ACKED)
        for _, slot, message in sorted(whole):  # the oldest first, as they would have been run
            try:
                _carry(old, new, slot, message, from_files, to_files)
            except (SegmentError, FileNotFoundError, QueueFull) as error:
                logger.warning("task %r is lost: %s", message[1], error)
                found.damaged += 1
            else:
                is_dead = state_of(message[0]) == MessageState.DEAD
                found.dead += is_dead
                found.kept += not is_dead
    finally:
        from_files.close()
        to_files.close()
    return found


def _carry_settings(old: Core, new: Core) -> None:
    if 1 <= old.max_deliveries <= 255:
        new.max_deliveries = old.max_deliveries
    if old.result_ttl <= _LONGEST_TTL:
        new.result_ttl = old.result_ttl


def _carry(
    old: Core,
    new: Core,
    slot: int,
    message: Salvaged,
    from_files: PayloadFiles,
    to_files: PayloadFiles,
) -> None:
    word, task_id, stored, form, size, lane, max_deliveries, _, due, expires = message
    parts: tuple[memoryview, ...] = ()
    if form == IN_FILE:
        parts = from_files.map(request_file(slot, generation_of(word)), file_parts(stored))
        if not is_whole(stored, parts):
            raise SegmentError("the file of its payload is damaged")
    state, attempts = state_of(word), attempt_of(word)
    new_slot, reserved = new.reserve(
        _ME, task_id, stored, form, size, lane, max_deliveries, True, due, expires
    )
    generation = generation_of(reserved)
    try:
        if parts:
            to_files.write(request_file(new_slot, generation), parts)
    except BaseException:
        new.give_up(_ME, new_slot, reserved)
        raise
    new.commit(_ME, new_slot, reserved)
    death = 0
    if state == MessageState.RUNNING:
        attempts = max(0, attempts - 1)  # the machine's end is not the task's fault
    look = old.look(slot)
    if look is not None:
        death = look[1]
    new.set_attempts(_ME, new_slot, generation, attempts, death)
    if state == MessageState.DEAD:
        outcome = old.outcome(slot, generation_of(word))
        new_word = new.take(_ME, new_slot, generation)
        if new_word is not None:
            new.dead_letter(_ME, new_slot, new_word, outcome[5] if outcome else b"")

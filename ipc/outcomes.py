"""The core's numbers about a message's end and state, as values for people and programs."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.model import (
    DeadReason,
    DeathCause,
    MessageState,
    MessageView,
    Outcome,
    OutcomeKind,
    Ticket,
)
from taskiq_supervise.ipc.word import attempt_of, generation_of, owner_of, state_of

if TYPE_CHECKING:
    from taskiq_supervise.ipc._core import Core, Look

_VERDICT = struct.Struct("<BQ")  # reason, who said so as a death record; the words follow
_MOST_WORDS = 900
"""Bytes of a dead letter's detail: it fits into the smallest blocks."""

_RESULT = OutcomeKind.RESULT


def verdict(reason: DeadReason, detail: str, worker: DeathCause) -> bytes:
    """What is kept with a dead letter. worker: who says so."""
    return _VERDICT.pack(reason, worker.packed()) + detail.encode()[:_MOST_WORDS]


def _parsed(data: bytes) -> tuple[DeadReason, DeathCause, str]:
    if len(data) < _VERDICT.size:
        return DeadReason.DAMAGED, DeathCause(), ""
    number, record = _VERDICT.unpack_from(data)
    reason = DeadReason(number) if number in set(DeadReason) else DeadReason.DAMAGED
    return reason, DeathCause.unpacked(record), data[_VERDICT.size :].decode(errors="replace")


def outcome_of(
    task_id: str,
    kind: int,
    attempts: int,
    death: int,
    data: bytes,
    buffers: tuple[memoryview, ...] = (),
) -> Outcome:
    if kind == _RESULT:  # the usual end, on the way of every round trip
        return Outcome(task_id, _RESULT, data, attempts, None, "", None, buffers)
    match OutcomeKind(kind):
        case (OutcomeKind.WORKER_LOST | OutcomeKind.TIMED_OUT) as killed:
            return Outcome(task_id, killed, b"", attempts, cause=DeathCause.unpacked(death))
        case OutcomeKind.DEAD as dead if not data:
            cause = DeathCause.unpacked(death)
            reason, detail = DeadReason.MAX_DELIVERIES, f"its worker {cause}"
            return Outcome(task_id, dead, b"", attempts, reason, detail, cause)
        case OutcomeKind.DEAD as dead:
            reason, _, detail = _parsed(data)
            return Outcome(task_id, dead, b"", attempts, reason, detail)
        case other:
            return Outcome(task_id, other, b"", attempts)


def _time(nanoseconds: int) -> float | None:
    return nanoseconds / 1e9 if nanoseconds else None


def view_of(core: Core, slot: int, seen: Look) -> MessageView:
    (
        word, death, created, ended, due, expires, size, priority, _, max_deliveries, _, task_id,
    ) = seen  # fmt: skip
    state = MessageState(state_of(word))
    ticket = Ticket(slot, generation_of(word), task_id)
    pid = worker = reason = cause = None
    detail = ""
    if state in (MessageState.LEASED, MessageState.RUNNING, MessageState.ACKED):
        _, _, pid, _, tag, _ = core.participant(owner_of(word))
        worker = tag - 1 if tag else None
    elif state is MessageState.DEAD:
        try:
            found = core.outcome(slot, ticket.generation)
        except LookupError:
            found = None  # dropped just now; what is known is shown
        data = found[5] if found is not None else b""
        if data:
            reason, judge, detail = _parsed(data)
            pid, worker = judge.pid or None, judge.worker
        else:
            reason, cause = DeadReason.MAX_DELIVERIES, DeathCause.unpacked(death)
            pid, worker, detail = cause.pid or None, cause.worker, f"its worker {cause}"
    return MessageView(
        ticket, state, attempt_of(word), priority, size, created / 1e9, _time(due), _time(expires),
        _time(ended), max_deliveries, pid, worker, reason, detail, cause,
    )  # fmt: skip

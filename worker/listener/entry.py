"""A message of the ledger, and as a row of the store."""

from dataclasses import dataclass

from taskiq_supervise.ipc import DeadReason, DeathCause, MessageState, OutcomeKind, Ticket
from taskiq_supervise.worker.listener.store import Parts, Row


@dataclass(eq=False, slots=True)
class Entry:
    """One message. `seq` is its number in the store, in the order of arrival."""

    seq: int
    task_id: str
    priority: int
    due: float | None
    expires: float | None
    max_deliveries: int
    created: float
    state: MessageState = MessageState.READY
    attempts: int = 0
    """Starts, that of the worker which has it now included."""
    worker: str | None = None
    kind: OutcomeKind | None = None
    ended: float | None = None
    reason: DeadReason | None = None
    detail: str = ""
    cause: DeathCause | None = None
    size: int = 0
    """Bytes of the message, then of the result."""
    settled: bool = False
    """Its end was told to those who look for it elsewhere."""
    older: "Entry | None" = None
    """Another message with the same id."""
    parts: "Parts | None" = None
    """The message, while it is in memory."""
    sender: tuple[bytes, int] | None = None

    @property
    def ticket(self) -> Ticket:
        return Ticket(0, self.seq, self.task_id)


def row_of(entry: Entry) -> Row:
    """As it is inserted."""
    return (
        entry.seq,
        entry.task_id,
        entry.priority,
        entry.due,
        entry.expires,
        entry.max_deliveries,
        entry.created,
        *_state_of(entry),
    )


def changes_of(entry: Entry) -> Row:
    """What may have changed, and of which."""
    return (*_state_of(entry), entry.due, entry.seq)


def _state_of(entry: Entry) -> Row:
    return (
        int(entry.state),
        entry.attempts,
        entry.worker,
        entry.kind,
        entry.ended,
        entry.reason,
        entry.detail,
        _signed(entry.cause),
        entry.size,
        entry.settled,
    )


def entry_of(row: Row) -> Entry:
    """As it was read."""
    (
        seq, task_id, priority, due, expires, most, created, state, attempts, worker, kind, ended,
        reason, detail, cause, size, settled,
    ) = row  # fmt: skip
    return Entry(
        seq, task_id, priority, due, expires, most, created, MessageState(state), attempts, worker,
        None if kind is None else OutcomeKind(kind), ended,
        None if reason is None else DeadReason(reason), detail,
        None if cause is None else DeathCause.unpacked(cause & 0xFFFF_FFFF_FFFF_FFFF), size,
        bool(settled),
    )  # fmt: skip


def _signed(cause: DeathCause | None) -> int | None:
    """SQLite's integers have a sign."""
    if cause is None:
        return None
    record = cause.packed()
    return record - (1 << 64) if record >> 63 else record

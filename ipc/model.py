"""The queue's data as others see it: geometry, roles, outcomes, counts.

Plain values without behaviour towards the segment, so that the supervisor, the broker and tests can
handle them without attaching to anything.
"""

from __future__ import annotations

import enum
import signal as signals
from dataclasses import dataclass
from typing import NamedTuple

DEFAULT_PRIORITY = 5
"""Of 0 … 9, higher first."""


class Role(enum.IntEnum):
    """What a participant is, for people and for the choice of the custodian."""

    CLIENT = 1
    WORKER = 2
    SUPERVISOR = 3


@dataclass(frozen=True, slots=True)
class Geometry:
    """Size of a queue; fixed when its segment is created. The default takes 47 MB.

    Attributes:
        slots: messages and kept results together, a power of two, 64 … 262,144.
        inline_size: bytes of id and payload that fit into a slot, a multiple of 64.
        participants: processes (more exactly: open queues) at a time, a multiple of 64.
        blocks: (bytes, count) of each class of payload blocks, ascending; counts are powers of two.
    """

    slots: int = 16_384
    inline_size: int = 384
    participants: int = 512
    blocks: tuple[tuple[int, int], ...] = (
        (1_024, 16_384),
        (4_096, 1_024),
        (16_384, 256),
        (65_536, 64),
        (262_144, 16),
    )

    @classmethod
    def of_capacity(cls, capacity: int) -> Geometry:
        """The default geometry with room for `capacity` messages and results, at least.

        A larger queue gets as many more blocks as slots; a smaller one keeps its blocks, since what
        one payload may take does not depend on how many there are.
        """
        default = cls()
        slots = max(64, 1 << (capacity - 1).bit_length())
        times = max(1, slots // default.slots)
        blocks = tuple((size, count * times) for size, count in default.blocks)
        return cls(slots=slots, blocks=blocks)

    def as_tuple(self) -> tuple[int, int, int, tuple[tuple[int, int], ...]]:
        return self.slots, self.inline_size, self.participants, self.blocks


class OutcomeKind(enum.IntEnum):
    """How a message ended."""

    RESULT = 0
    NO_RESULT = 1
    """It ended without a result; the same id may come again (a retry)."""
    WORKER_LOST = 2
    """Its worker died after the acknowledgement, before the result."""
    DEAD = 3
    """It is kept as a dead letter."""
    EXPIRED = 4
    """Its time was over before it was started."""
    DISCARDED = 5
    """Somebody removed it before it was started."""
    TIMED_OUT = 6
    """It took longer than it may, and its worker was killed for it."""


class MessageState(enum.IntEnum):
    """Where a message is in its life; the values are those of the slot word."""

    READY = 2
    DELAYED = 3
    LEASED = 4
    RUNNING = 5
    ACKED = 6
    DONE = 7
    DEAD = 8


class DeadReason(enum.IntEnum):
    """Why a message became a dead letter."""

    UNPARSABLE = 1
    UNKNOWN_TASK = 2
    MAX_DELIVERIES = 3
    DAMAGED = 4


_UNKNOWN, _SIGNAL, _EXIT = 0, 1, 2
_OOM, _HUNG = 0x10, 0x20  # beside one of those


@dataclass(frozen=True, slots=True)
class DeathCause:
    """How a worker died, as far as its parent could see.

    Attributes:
        pid: its process id, 0 when unknown.
        worker: its worker slot under the supervisor, None outside one.
        signal: number of the signal that killed it.
        exit_code: its exit status when it was not killed.
        oom: the kernel killed it for want of memory.
        hung: its supervisor killed it because its event loop was blocked.
    """

    pid: int = 0
    worker: int | None = None
    signal: int | None = None
    exit_code: int | None = None
    oom: bool = False
    hung: bool = False

    def __str__(self) -> str:
        if self.hung:
            return "killed: its event loop was blocked"
        if self.signal is not None:
            try:
                name = signals.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            return f"killed by {name}" + ": out of memory" * self.oom
        if self.exit_code is not None:
            return f"exited with status {self.exit_code}"
        return "died"

    def packed(self) -> int:
        """The death record of the protocol: cause:8 | value:8 | worker slot + 1:16 | pid:32.

        The cause's low 4 bits say how it ended, the others what only its supervisor knows.
        """
        kind, value = _UNKNOWN, 0
        if self.signal is not None:
            kind, value = _SIGNAL, self.signal
        elif self.exit_code is not None:
            kind, value = _EXIT, self.exit_code
        kind |= _OOM * self.oom | _HUNG * self.hung
        tag = 0 if self.worker is None else self.worker + 1
        return kind << 56 | (value & 0xFF) << 48 | (tag & 0xFFFF) << 32 | self.pid & 0xFFFFFFFF

    @classmethod
    def unpacked(cls, record: int) -> DeathCause:
        cause, value, tag = record >> 56 & 0xFF, record >> 48 & 0xFF, record >> 32 & 0xFFFF
        kind = cause & 0x0F
        return cls(
            pid=record & 0xFFFFFFFF,
            worker=tag - 1 if tag else None,
            signal=value if kind == _SIGNAL else None,
            exit_code=value if kind == _EXIT else None,
            oom=bool(cause & _OOM),
            hung=bool(cause & _HUNG),
        )


class Outcome(NamedTuple):
    """How a message ended.

    Attributes:
        data: the result's bytes, empty unless kind is RESULT.
        buffers: the result's out-of-band buffers; large ones are views of shared memory.
        attempts: how often it was started.
        detail: why it is a dead letter, in words.
        cause: the death that ended it (WORKER_LOST, TIMED_OUT, or DEAD for MAX_DELIVERIES).
    """

    task_id: str
    kind: OutcomeKind
    data: bytes = b""
    attempts: int = 0
    dead_reason: DeadReason | None = None
    detail: str = ""
    cause: DeathCause | None = None
    buffers: tuple[memoryview, ...] = ()


class Ticket(NamedTuple):
    """Names one message: the slot it lies in and the slot's generation."""

    slot: int
    generation: int
    task_id: str


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Messages by state. `running` includes those acknowledged before their result was saved."""

    ready: int
    leased: int
    running: int
    delayed: int
    dead: int
    done: int
    free: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Participant:
    """One open queue of one process."""

    index: int
    role: int
    pid: int
    guardian: int
    tag: int
    generation: int


@dataclass(frozen=True, slots=True)
class Burial:
    """What became of the messages that a dead participant held: task ids."""

    redelivered: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    timed_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MessageView:
    """A message as others see it. Times are Unix time in seconds.

    Attributes:
        attempts: how often it has been started.
        size: bytes of the payload, its buffers included.
        created, due, expires, ended: None where it does not apply.
        max_deliveries: starts in all, 0: the queue's default.
        worker_pid: who holds it, or whose death or verdict made it a dead letter.
        worker: that one's worker slot under its supervisor.
        detail: why it is a dead letter, in words.
    """

    ticket: Ticket
    state: MessageState
    attempts: int
    priority: int
    size: int
    created: float
    due: float | None
    expires: float | None
    ended: float | None
    max_deliveries: int
    worker_pid: int | None = None
    worker: int | None = None
    dead_reason: DeadReason | None = None
    detail: str = ""
    cause: DeathCause | None = None

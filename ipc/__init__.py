"""The shared-memory task queue, its doorbells and the worker board.

Knows nothing of taskiq. TaskQueue is the queue without an event loop, AsyncTaskQueue the same on
one; the protocol is described in docs/protocol.md, its core is the C code below core/.
"""

if not __name__.startswith("taskiq_supervise."):
    raise ImportError("import this package as taskiq_supervise.ipc, not from the folder it lies in")

from taskiq_supervise.ipc._core import guard_parent
from taskiq_supervise.ipc.aio import AsyncTaskQueue
from taskiq_supervise.ipc.board import Board, BoardWriter, RunningTask, WorkerView
from taskiq_supervise.ipc.errors import (
    AlreadyAccepted,
    FilesFull,
    LeaseExpired,
    LeaseLost,
    PayloadTooLarge,
    QueueBusy,
    QueueError,
    QueueFull,
    QueueMissing,
    SegmentError,
    UnknownTask,
)
from taskiq_supervise.ipc.lease import Lease
from taskiq_supervise.ipc.model import (
    DEFAULT_PRIORITY,
    Burial,
    DeadReason,
    DeathCause,
    Geometry,
    MessageState,
    MessageView,
    Outcome,
    OutcomeKind,
    Participant,
    QueueStats,
    Role,
    Ticket,
)
from taskiq_supervise.ipc.queue import TaskQueue
from taskiq_supervise.ipc.segment import QUEUE_DIRECTORY_VARIABLE, default_base_directory

__all__ = [
    "DEFAULT_PRIORITY",
    "QUEUE_DIRECTORY_VARIABLE",
    "AlreadyAccepted",
    "AsyncTaskQueue",
    "Board",
    "BoardWriter",
    "Burial",
    "DeadReason",
    "DeathCause",
    "FilesFull",
    "Geometry",
    "Lease",
    "LeaseExpired",
    "LeaseLost",
    "MessageState",
    "MessageView",
    "Outcome",
    "OutcomeKind",
    "Participant",
    "PayloadTooLarge",
    "QueueBusy",
    "QueueError",
    "QueueFull",
    "QueueMissing",
    "QueueStats",
    "Role",
    "RunningTask",
    "SegmentError",
    "TaskQueue",
    "Ticket",
    "UnknownTask",
    "WorkerView",
    "default_base_directory",
    "guard_parent",
]

"""The taskiq broker over the shared-memory queue, its result backend, what users see of them."""

from taskiq_supervise.broker.errors import (
    BrokerNotStartedError,
    ConnectionDeniedError,
    DeadLetterError,
    ForeignResultError,
    GivenBackError,
    InvalidLabelError,
    ListenerUnreachableError,
    MessageRefusedError,
    MessageTooLargeError,
    QueueFullError,
    QueueNotStartedError,
    ResultExpiredError,
    ResultNotReadyError,
    ResultRoomError,
    ResultTooLargeError,
    ResultUnreachableError,
    TaskDiscardedError,
    TaskExpiredError,
    TaskTimeoutError,
    UnserializableResultError,
    UnsuitableBrokerError,
    WorkerLostError,
)
from taskiq_supervise.broker.formatter import FrameFormatter
from taskiq_supervise.broker.payload import Payload
from taskiq_supervise.broker.pickling import CloudpickleSerializer
from taskiq_supervise.broker.results import SharedMemoryResultBackend
from taskiq_supervise.broker.rule import broadcast_reason, check_suitable
from taskiq_supervise.broker.shared_memory import SharedMemoryBroker
from taskiq_supervise.broker.task import QueueTask, wait_result

__all__ = [
    "BrokerNotStartedError",
    "CloudpickleSerializer",
    "ConnectionDeniedError",
    "DeadLetterError",
    "ForeignResultError",
    "FrameFormatter",
    "GivenBackError",
    "InvalidLabelError",
    "ListenerUnreachableError",
    "MessageRefusedError",
    "MessageTooLargeError",
    "Payload",
    "QueueFullError",
    "QueueNotStartedError",
    "QueueTask",
    "ResultExpiredError",
    "ResultNotReadyError",
    "ResultRoomError",
    "ResultTooLargeError",
    "ResultUnreachableError",
    "SharedMemoryBroker",
    "SharedMemoryResultBackend",
    "TaskDiscardedError",
    "TaskExpiredError",
    "TaskTimeoutError",
    "UnserializableResultError",
    "UnsuitableBrokerError",
    "WorkerLostError",
    "broadcast_reason",
    "check_suitable",
    "wait_result",
]

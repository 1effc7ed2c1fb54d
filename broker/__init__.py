"""The taskiq broker over the shared-memory queue, its result backend, what users see of them."""

from taskiq_supervise.broker.errors import (
    BrokerNotStartedError,
    DeadLetterError,
    ForeignResultError,
    GivenBackError,
    InvalidLabelError,
    MessageTooLargeError,
    QueueFullError,
    QueueNotStartedError,
    ResultExpiredError,
    ResultNotReadyError,
    ResultRoomError,
    ResultTooLargeError,
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
from taskiq_supervise.broker.task import SharedMemoryTask, wait_result

__all__ = [
    "BrokerNotStartedError",
    "CloudpickleSerializer",
    "DeadLetterError",
    "ForeignResultError",
    "FrameFormatter",
    "GivenBackError",
    "InvalidLabelError",
    "MessageTooLargeError",
    "Payload",
    "QueueFullError",
    "QueueNotStartedError",
    "ResultExpiredError",
    "ResultNotReadyError",
    "ResultRoomError",
    "ResultTooLargeError",
    "SharedMemoryBroker",
    "SharedMemoryResultBackend",
    "SharedMemoryTask",
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

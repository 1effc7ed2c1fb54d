"""taskiq-supervise: many taskiq workers as one service, and a broker in shared memory.

The public names are resolved on first use (PEP 562): the supervisor's process imports this package
as everyone does, and must not import taskiq or the application by it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskiq_supervise.broker import (
        BrokerNotStartedError,
        CloudpickleSerializer,
        ConnectionDeniedError,
        DeadLetterError,
        InvalidLabelError,
        ListenerUnreachableError,
        MessageRefusedError,
        MessageTooLargeError,
        QueueFullError,
        ResultExpiredError,
        ResultUnreachableError,
        SharedMemoryBroker,
        SharedMemoryResultBackend,
        TaskDiscardedError,
        TaskExpiredError,
        TaskTimeoutError,
        UnserializableResultError,
        WorkerLostError,
        wait_result,
    )
    from taskiq_supervise.broker.zeromq import ZeroMQBroker, ZeroMQResultBackend

__version__ = "0.1.0"

__all__ = [
    "BrokerNotStartedError",
    "CloudpickleSerializer",
    "ConnectionDeniedError",
    "DeadLetterError",
    "InvalidLabelError",
    "ListenerUnreachableError",
    "MessageRefusedError",
    "MessageTooLargeError",
    "QueueFullError",
    "ResultExpiredError",
    "ResultUnreachableError",
    "SharedMemoryBroker",
    "SharedMemoryResultBackend",
    "TaskDiscardedError",
    "TaskExpiredError",
    "TaskTimeoutError",
    "UnserializableResultError",
    "WorkerLostError",
    "ZeroMQBroker",
    "ZeroMQResultBackend",
    "__version__",
    "wait_result",
]

_ROOM = "taskiq_supervise.broker"
_ZEROMQ_ROOM = "taskiq_supervise.broker.zeromq"
"""Apart, so that who sends through shared memory loads no zmq."""


if not TYPE_CHECKING:  # a type checker that saw this function would believe in every name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        room = _ZEROMQ_ROOM if name.startswith("ZeroMQ") else _ROOM
        value = getattr(import_module(room), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The errors that users of the broker meet, in taskiq's style: a template and declared fields.

taskiq carries an exception to the client as its class and its `args`. Its own templated errors take
keyword arguments only and so arrive as a bare `Exception`; these keep their fields in `args` and
take them back by position, so that class, fields and message survive JSON and pickle.
"""

import signal as signals
from typing import Any

from taskiq.exceptions import (
    ResultBackendError,
    ResultGetError,
    ResultSetError,
    SendTaskError,
    TaskiqError,
)

__all__ = [
    "BrokerNotStartedError",
    "ConnectionDeniedError",
    "DeadLetterError",
    "ForeignResultError",
    "GivenBackError",
    "InvalidLabelError",
    "ListenerUnreachableError",
    "MessageRefusedError",
    "MessageTooLargeError",
    "QueueFullError",
    "QueueNotStartedError",
    "ResultExpiredError",
    "ResultNotReadyError",
    "ResultRoomError",
    "ResultTooLargeError",
    "ResultUnreachableError",
    "TaskDiscardedError",
    "TaskExpiredError",
    "TaskTimeoutError",
    "UnserializableResultError",
    "UnsuitableBrokerError",
    "WorkerLostError",
]

_NEVERTHELESS = "; it may be run nevertheless"


class FieldsError(TaskiqError):
    """Base of our errors: the declared fields, in order, are the exception's `args`."""

    __template__ = "taskiq-supervise failed"

    def __init__(self, *values: object, **fields: object) -> None:
        names = list(self._collect_annotations())
        if len(values) > len(names):
            raise TypeError(f"{type(self).__name__} has {len(names)} fields, got {len(values)}")
        super().__init__(**dict(zip(names, values, strict=False)), **fields)
        self.args = tuple(getattr(self, name) for name in names)

    def __str__(self) -> str:
        fields = {name: getattr(self, name) for name in self._collect_annotations()}
        return self.__template__.format(**fields)


class QueueNotStartedError(FieldsError):
    """The queue was used through a broker that is not started, or started elsewhere."""

    __template__ = "the queue {queue!r} cannot be used yet: {reason}"
    queue: str
    reason: str


class BrokerNotStartedError(QueueNotStartedError, SendTaskError):
    """`kiq()` before `startup()`, or a `shutdown()` while it waits."""

    __template__ = "cannot send to the queue {queue!r}: {reason}"
    may_run: bool = False
    """The task had been sent before the shutdown, so it may have been accepted."""

    def __str__(self) -> str:
        return super().__str__() + _NEVERTHELESS * self.may_run


class QueueFullError(FieldsError, SendTaskError):
    """There was no room in the queue for as long as `kiq_timeout` allows."""

    __template__ = (
        "the queue {queue!r} was full for {timeout} s; start more workers, or give "
        "SharedMemoryBroker a larger capacity or a longer kiq_timeout"
    )
    queue: str
    timeout: float | None
    reason: str = ""
    """Set when it was the file system that had no room."""

    def __str__(self) -> str:
        if not self.reason:
            return super().__str__()
        return f"the queue {self.queue!r} was full for {self.timeout} s: {self.reason}"


class MessageTooLargeError(FieldsError, SendTaskError):
    """The arguments do not fit into the queue, however empty it is."""

    __template__ = (
        "the message of task {task!r} ({size} bytes) does not fit into the queue: {reason}"
    )
    task: str
    size: int
    reason: str


class ListenerUnreachableError(FieldsError, SendTaskError):
    """No supervisor answered for as long as `kiq_timeout` allows."""

    __template__ = "no supervisor accepted the task at {endpoint} within {timeout} s: {reason}"
    endpoint: str
    timeout: float | None
    reason: str
    may_run: bool = False
    """The task had been sent when the connection was lost, so it may have been accepted."""

    def __str__(self) -> str:
        return super().__str__() + _NEVERTHELESS * self.may_run


class ConnectionDeniedError(FieldsError, SendTaskError):
    """The supervisor does not talk with this client: waiting would not help."""

    __template__ = "{endpoint} refuses this client: {reason}"
    endpoint: str
    reason: str
    may_run: bool = False
    """The task had been sent over an earlier connection, so it may have been accepted."""

    def __str__(self) -> str:
        return super().__str__() + _NEVERTHELESS * self.may_run


class MessageRefusedError(FieldsError, SendTaskError):
    """The supervisor took the message and refused it for good."""

    __template__ = "{endpoint} refuses task {task!r}: {reason}"
    endpoint: str
    task: str
    reason: str


class InvalidLabelError(FieldsError, SendTaskError):
    """A label that the queue reads says nothing that it could do."""

    __template__ = "the label {label} is {value!r}, not {allowed}"
    label: str
    value: str
    allowed: str


class GivenBackError(FieldsError, SendTaskError):
    """A task that is being given back to the queue tried to send another; its next run will."""

    __template__ = "task {task_id} is being given back to the queue and sends nothing any more"
    task_id: str


class ResultExpiredError(FieldsError, ResultGetError):
    """The task is nowhere in the queue: its result expired or was evicted, or it was never sent."""

    __template__ = (
        "no task {task_id} in the queue {queue!r}: its result has expired or made room for newer "
        "ones, or it was never sent there"
    )
    task_id: str
    queue: str


class ResultNotReadyError(FieldsError, ResultGetError):
    """`get_result()` of a task that has not ended."""

    __template__ = "task {task_id} has not ended yet; use wait_result()"
    task_id: str


class ForeignResultError(FieldsError, ResultSetError):
    """A result for a task that this process did not take from this queue."""

    __template__ = (
        "task {task_id} was not taken from a shared-memory queue by this process, so there is no "
        "slot for its result: SharedMemoryResultBackend works with SharedMemoryBroker only"
    )
    task_id: str


class ResultTooLargeError(FieldsError, ResultBackendError):
    """The task ended well, but its result does not fit into the queue, however empty it is."""

    __template__ = (
        "the result of task {task_id} ({size} bytes) does not fit into the queue: {reason}"
    )
    task_id: str
    size: int
    reason: str


class ResultRoomError(FieldsError, ResultBackendError):
    """The task ended well, but its result found no room, though it would fit into the queue."""

    __template__ = (
        "no room in the queue {queue!r} for the result of task {task_id} ({size} bytes) within "
        "{timeout} s: other messages and results fill it, or its file system; make it larger with "
        "SharedMemoryBroker(capacity=...), or have fewer large messages in it at once"
    )
    task_id: str
    size: int
    queue: str
    timeout: float


class ResultUnreachableError(FieldsError, ResultGetError):
    """The supervisor that has the result cannot be asked."""

    __template__ = "the result of task {task_id} cannot be asked for at {endpoint}: {reason}"
    task_id: str
    endpoint: str
    reason: str


class UnserializableResultError(FieldsError, ResultBackendError):
    """The task ended well, but what it returned cannot be serialized."""

    __template__ = "the return value of task {task_id}, a {type}, cannot be serialized: {reason}"
    task_id: str
    type: str
    reason: str


class UnsuitableBrokerError(FieldsError):
    """This broker cannot be run by taskiq-supervise."""

    __template__ = "{broker} cannot be run here: {reason}"
    broker: str
    reason: str


class WorkerLostError(FieldsError):
    """The process that ran the task died, and the task will not be started again.

    Either it was acknowledged before its end (then a second run would be one too many), or it took
    its worker with it each time and was started as often as allowed.
    """

    __template__ = "a worker died while running {task}"
    task_id: str
    task: str
    """The task's name where it is known, else its id."""
    signal: int | None = None
    """What killed the process, a `signal.Signals`."""
    exit_code: int | None = None
    """What it exited with by itself."""
    worker: int | None = None
    """Its worker slot, as `status` shows it."""
    pid: int | None = None
    attempts: int = 1
    """How often the task was started."""
    acknowledged: bool = False
    oom: bool = False
    """The kernel killed it, because memory had run out."""
    hung: bool = False
    """The supervisor killed it, because its event loop was blocked."""

    def __init__(self, *values: object, **fields: object) -> None:
        super().__init__(*values, **fields)
        if self.signal is not None and not isinstance(self.signal, signals.Signals):
            self.signal = _named(self.signal)

    def __str__(self) -> str:
        limit = "" if self.acknowledged else f" of {self.attempts}"
        because = (
            "; it was acknowledged before, so it is not run again" if self.acknowledged else ""
        )
        return f"{self._what()} while running {self.task}, start {self.attempts}{limit}{because}"

    def _what(self) -> str:
        who = "its process" if self.worker is None else f"worker {self.worker}"
        who += f" (pid {self.pid})" if self.pid else ""
        if self.hung:
            return f"{who} was killed because its event loop was blocked"
        if self.signal is not None:
            why = " (out of memory)" if self.oom else ""
            name = getattr(self.signal, "name", f"signal {self.signal}")
            return f"{who} was killed by {name}{why}"
        if self.exit_code is not None:
            return f"{who} exited with status {self.exit_code}"
        return f"{who} died"


class TaskTimeoutError(FieldsError):
    """The task ran for longer than its hard time limit, so its worker was killed.

    It is not run again. What else that worker ran is.
    """

    __template__ = "{task} ran into its hard time limit"
    task_id: str
    task: str
    """The task's name where it is known, else its id."""
    limit: float | None = None
    """Seconds, where it is known."""
    worker: int | None = None
    """Its worker slot, as `status` shows it."""
    pid: int | None = None
    attempts: int = 1
    """How often the task was started."""

    def __str__(self) -> str:
        limit = "" if self.limit is None else f" of {self.limit:g} s"
        killed = "" if self.worker is None else f"; worker {self.worker}"
        killed += f" (pid {self.pid})" if killed and self.pid else ""
        killed += " was killed for it" if killed else ""
        return f"{self.task} ran into its hard time limit{limit}{killed}"


class DeadLetterError(FieldsError):
    """The message was put aside as a dead letter: no worker could or should run it."""

    __template__ = "task {task_id} was dead-lettered: {reason}{detail}"
    task_id: str
    reason: str
    detail: str = ""
    attempts: int = 0

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"task {self.task_id} was dead-lettered: {self.reason}{detail}"


class TaskExpiredError(FieldsError):
    """The task was not run: no worker had started it when its label `expires` said it was late."""

    __template__ = "{task} was not run: it had expired before a worker could start it"
    task_id: str
    task: str
    """The task's name where it is known, else its id."""


class TaskDiscardedError(FieldsError):
    """The task was not run: somebody took it out of the queue (`taskiq-supervise queue purge`)."""

    __template__ = "{task} was not run: it was taken out of the queue before a worker started it"
    task_id: str
    task: str
    """The task's name where it is known, else its id."""


def _named(number: Any) -> int:
    try:
        return signals.Signals(number)
    except ValueError:  # a real-time signal between the named ones
        return int(number)

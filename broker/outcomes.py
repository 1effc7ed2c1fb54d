"""How a task ended, between taskiq's `TaskiqResult` and the bytes and outcomes of the queue.

Whatever a task returns or raises becomes a result that can be read: somebody is waiting for it.
What cannot be serialized becomes an error that says so.
"""

import json
import logging
from typing import Any

from taskiq.abc.serializer import TaskiqSerializer
from taskiq.exceptions import ResultGetError
from taskiq.result import TaskiqResult
from taskiq.serialization import ExceptionRepr, prepare_exception, safe_repr

from taskiq_supervise.broker.errors import (
    DeadLetterError,
    TaskDiscardedError,
    TaskExpiredError,
    TaskTimeoutError,
    UnserializableResultError,
    WorkerLostError,
)
from taskiq_supervise.broker.frames import pack, unpack
from taskiq_supervise.broker.payload import Payload
from taskiq_supervise.ipc import DeadReason, Outcome, OutcomeKind

logger = logging.getLogger("taskiq_supervise.broker")

_REASONS = {
    DeadReason.UNPARSABLE: "the message cannot be parsed",
    DeadReason.UNKNOWN_TASK: "no worker knows such a task; is its module imported?",
    DeadReason.MAX_DELIVERIES: "its workers died",
    DeadReason.DAMAGED: "its bytes in the queue are damaged",
}


def error_result(
    error: BaseException, like: "TaskiqResult[Any] | None" = None
) -> TaskiqResult[Any]:
    """A result that is this error, with labels and time of the result it takes the place of."""
    return TaskiqResult(
        is_err=True,
        return_value=None,
        execution_time=like.execution_time if like else 0.0,
        labels=like.labels if like else {},
        error=error,
    )


def encode(task_id: str, result: TaskiqResult[Any], serializer: TaskiqSerializer) -> bytes:
    """The bytes of a result, with what is large beside them. Never fails: see above."""
    try:
        return _encode(result, result.return_value, serializer)
    except Exception as error:
        value = result.return_value
        reason = f"{type(error).__name__}: {error}"
        logger.warning("The result of task %s cannot be serialized: %s", task_id, reason)
        unserializable = UnserializableResultError(
            task_id=task_id,
            type=f"{type(value).__module__}.{type(value).__qualname__}",
            reason=reason,
        )
        failed = error_result(result.error or unserializable)
        failed.execution_time = result.execution_time
        return _encode(failed, None, serializer)


def _encode(result: TaskiqResult[Any], value: Any, serializer: TaskiqSerializer) -> bytes:
    values = {
        "is_err": result.is_err,
        "log": result.log,
        "return_value": value,
        "execution_time": result.execution_time,
        "labels": result.labels,
        "error": None if result.error is None else _error(result.error),
    }
    return pack(values, ("return_value", "labels"), serializer, as_they_are=True, beside=True)


def _error(error: BaseException) -> Any:
    try:
        prepared = prepare_exception(error, json)
        return prepared.model_dump(mode="json") if isinstance(prepared, ExceptionRepr) else None
    except Exception as reason:
        # An exception whose own arguments cannot even be shown.
        logger.warning("The exception %s cannot be serialized: %s", type(error).__name__, reason)
        return ExceptionRepr(
            exc_type=type(error).__qualname__,
            exc_message=(safe_repr(error),),
            exc_module=type(error).__module__,
        ).model_dump(mode="json")


def decode(
    outcome: Outcome, task_name: str | None, serializer: TaskiqSerializer
) -> TaskiqResult[Any]:
    """The result that a client gets. Raises ResultGetError for bytes that are not a result."""
    if outcome.kind is OutcomeKind.RESULT:
        try:
            data = Payload.of(outcome.data, outcome.buffers)
            return TaskiqResult.model_validate(unpack(data, serializer))
        except Exception as error:
            raise ResultGetError from error
    task = task_name or f"task {outcome.task_id}"
    if outcome.kind is OutcomeKind.EXPIRED:
        return error_result(TaskExpiredError(task_id=outcome.task_id, task=task))
    if outcome.kind is OutcomeKind.DISCARDED:
        return error_result(TaskDiscardedError(task_id=outcome.task_id, task=task))
    if outcome.kind is OutcomeKind.TIMED_OUT:
        return error_result(_timed_out(outcome, task))
    if outcome.kind is OutcomeKind.WORKER_LOST or outcome.dead_reason is DeadReason.MAX_DELIVERIES:
        return error_result(_worker_lost(outcome, task))
    reason = outcome.dead_reason
    return error_result(dead_letter(outcome.task_id, reason, outcome.detail, outcome.attempts))


def dead_letter(
    task_id: str, reason: DeadReason | None, detail: str, attempts: int
) -> DeadLetterError:
    """What those get who wait for a message that was put aside."""
    why = _REASONS[reason] if reason else "it was put aside"
    return DeadLetterError(task_id=task_id, reason=why, detail=detail, attempts=attempts)


def _worker_lost(outcome: Outcome, task: str) -> WorkerLostError:
    cause = outcome.cause
    return WorkerLostError(
        task_id=outcome.task_id,
        task=task,
        signal=cause.signal if cause else None,
        exit_code=cause.exit_code if cause else None,
        worker=cause.worker if cause else None,
        pid=cause.pid if cause else None,
        attempts=outcome.attempts,
        acknowledged=outcome.kind is OutcomeKind.WORKER_LOST,
        oom=cause.oom if cause else False,
        hung=cause.hung if cause else False,
    )


def _timed_out(outcome: Outcome, task: str) -> TaskTimeoutError:
    cause = outcome.cause
    return TaskTimeoutError(
        task_id=outcome.task_id,
        task=task,
        worker=cause.worker if cause else None,
        pid=cause.pid if cause else None,
        attempts=outcome.attempts,
    )

"""Our errors arrive at the client as what they are, however taskiq carries them."""

import json
import pickle
import signal
from typing import Any

import pytest
from taskiq import TaskiqResult
from taskiq.exceptions import ResultGetError, SendTaskError
from taskiq.serialization import exception_to_python, prepare_exception
from taskiq.serializers import JSONSerializer

from taskiq_supervise.broker.errors import (
    DeadLetterError,
    FieldsError,
    QueueFullError,
    ResultExpiredError,
    TaskTimeoutError,
    WorkerLostError,
)
from taskiq_supervise.broker.outcomes import decode
from taskiq_supervise.ipc import DeadReason, DeathCause, Outcome, OutcomeKind

LOST = WorkerLostError(
    task_id="id", task="app:boom", signal=9, exit_code=None, worker=2, pid=77, attempts=3
)
ERRORS = [
    LOST,
    WorkerLostError(task_id="id", task="t", signal=9, oom=True, hung=True),
    TaskTimeoutError(task_id="id", task="app:slow", limit=2.5, worker=1, pid=77, attempts=2),
    DeadLetterError(task_id="id", reason="why", detail="x", attempts=0),
    QueueFullError(queue="q", timeout=1.5),
    ResultExpiredError(task_id="id", queue="q"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_taskiqs_own_serialization(error: FieldsError) -> None:
    by_json = exception_to_python(prepare_exception(error, json))
    by_pickle = pickle.loads(pickle.dumps(error))
    result = TaskiqResult(is_err=True, return_value=None, execution_time=0, error=error)
    by_result = TaskiqResult.model_validate_json(result.model_dump_json()).error
    for arrived in (by_json, by_pickle, by_result):
        assert type(arrived) is type(error)
        assert arrived.args == error.args
        assert str(arrived) == str(error)


def test_the_message_names_signal_task_and_start() -> None:
    assert (
        str(LOST) == "worker 2 (pid 77) was killed by SIGKILL while running app:boom, start 3 of 3"
    )
    assert LOST.signal is signal.SIGKILL


def test_the_message_says_what_a_signal_does_not() -> None:
    lost: dict[str, Any] = {
        "task_id": "id",
        "task": "app:boom",
        "signal": 9,
        "worker": 2,
        "pid": 77,
    }
    assert str(WorkerLostError(**lost, oom=True)) == (
        "worker 2 (pid 77) was killed by SIGKILL (out of memory) while running app:boom, "
        "start 1 of 1"
    )
    assert str(WorkerLostError(**lost, hung=True)) == (
        "worker 2 (pid 77) was killed because its event loop was blocked while running app:boom, "
        "start 1 of 1"
    )


def test_a_time_limit_is_said_as_far_as_it_is_known() -> None:
    assert str(TaskTimeoutError(task_id="id", task="app:slow", limit=2.5)) == (
        "app:slow ran into its hard time limit of 2.5 s"
    )
    assert str(TaskTimeoutError(task_id="id", task="app:slow", worker=0, pid=77)) == (
        "app:slow ran into its hard time limit; worker 0 (pid 77) was killed for it"
    )


@pytest.mark.parametrize("task_name", ["app:t", None])
def test_each_end_in_the_queue_is_its_own_error(task_name: str | None) -> None:
    cause = DeathCause(pid=77, worker=2, signal=9, oom=True)
    hung = DeathCause(pid=77, worker=2, signal=9, hung=True)
    named: dict[str, Any] = {"task_id": "id", "task": task_name or "task id"}
    at: dict[str, Any] = {"worker": 2, "pid": 77, "attempts": 3}
    for outcome, error in (
        (
            Outcome("id", OutcomeKind.TIMED_OUT, attempts=3, cause=cause),
            TaskTimeoutError(**named, **at),
        ),
        (
            Outcome("id", OutcomeKind.WORKER_LOST, attempts=3, cause=cause),
            WorkerLostError(**named, **at, signal=9, oom=True, acknowledged=True),
        ),
        (
            Outcome(
                "id",
                OutcomeKind.DEAD,
                attempts=3,
                dead_reason=DeadReason.MAX_DELIVERIES,
                cause=hung,
            ),
            WorkerLostError(**named, **at, signal=9, hung=True),
        ),
    ):
        result = decode(outcome, task_name, JSONSerializer())
        assert type(result.error) is type(error)
        assert result.error is not None
        assert result.error.args == error.args


def test_an_acknowledged_task_is_said_not_to_run_again() -> None:
    error = WorkerLostError(task_id="id", task="app:t", exit_code=1, attempts=1, acknowledged=True)
    assert str(error) == (
        "its process exited with status 1 while running app:t, start 1; "
        "it was acknowledged before, so it is not run again"
    )


def test_a_signal_without_a_name_has_its_number() -> None:
    assert "killed by signal 35" in str(WorkerLostError(task_id="id", task="t", signal=35))


def test_errors_belong_to_taskiqs_families() -> None:
    assert issubclass(QueueFullError, SendTaskError)
    assert issubclass(ResultExpiredError, ResultGetError)
    unknown: dict[str, Any] = {"queue": "q", "timeout": 1, "colour": "red"}
    with pytest.raises(TypeError, match="colour"):
        QueueFullError(**unknown)
    anything: Any = QueueFullError
    with pytest.raises(TypeError, match="has 3 fields, got 4"):
        anything("q", 1, "why", "red")

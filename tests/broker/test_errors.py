"""Our errors arrive at the client as what they are, however taskiq carries them."""

import json
import pickle
import signal
from typing import Any

import pytest
from taskiq import TaskiqResult
from taskiq.exceptions import ResultGetError, SendTaskError
from taskiq.serialization import exception_to_python, prepare_exception

from taskiq_supervise.broker.errors import (
    DeadLetterError,
    FieldsError,
    QueueFullError,
    ResultExpiredError,
    WorkerLostError,
)

LOST = WorkerLostError(
    task_id="id", task="app:boom", signal=9, exit_code=None, worker=2, pid=77, attempts=3
)
ERRORS = [
    LOST,
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

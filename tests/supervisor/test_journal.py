"""Every happening has its words, and a worker is always named in the same way."""

import json
import logging

import pytest

from taskiq_supervise.ipc import Burial
from taskiq_supervise.supervisor import journal
from taskiq_supervise.supervisor.core.messages import Happening, Report
from taskiq_supervise.supervisor.core.model import LISTENER, ExitStatus, Reason
from taskiq_supervise.supervisor.core.transport import Listening
from taskiq_supervise.supervisor.journal import Journal


@pytest.mark.parametrize("what", Happening)
def test_every_happening_is_put_into_words(what: Happening) -> None:
    level, text = journal.render(
        Report(what, 3, 2, 4711, 1, ExitStatus(code=1), Reason.CRASH, 1.5, detail="drain")
    )
    assert level in {
        logging.DEBUG,
        logging.INFO,
        logging.WARNING,
        logging.ERROR,
        logging.CRITICAL,
    }
    assert text
    assert "None" not in text
    if what.name.startswith(("WORKER", "FORK", "STRAY")):
        assert text.startswith("worker=3 gen=2 pid=4711 ")


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (
            Report(
                Happening.WORKER_EXITED,
                3,
                2,
                4711,
                None,
                ExitStatus(signal=9),
                Reason.CRASH,
                delay=0.0,
            ),
            "worker=3 gen=2 pid=4711 killed by SIGKILL; again at once",
        ),
        (
            Report(
                Happening.WORKER_EXITED,
                3,
                2,
                4711,
                None,
                ExitStatus(code=3),
                Reason.BOOT,
                delay=0.25,
                detail="connection refused",
            ),
            "worker=3 gen=2 pid=4711 could not start: connection refused; again in 250 ms",
        ),
        (
            Report(
                Happening.WORKER_EXITED,
                3,
                2,
                4711,
                None,
                ExitStatus(signal=9),
                Reason.CRASH,
                delay=20.0,
                quarantined=True,
            ),
            (
                "worker=3 gen=2 pid=4711 killed by SIGKILL; "
                "restarted too often lately: again in 20.0 s"
            ),
        ),
        (Report(Happening.POOL_READY, detail="4"), "ready: 4 workers"),
        (Report(Happening.POOL_READY, detail="1"), "ready: 1 worker"),
        (
            Report(Happening.FORK_LOST, 0, 1),
            "worker=0 gen=1 lost: the zygote died before it answered",
        ),
        (
            Report(Happening.WORKER_READY, LISTENER, 2, 4711),
            "listener gen=2 pid=4711 ready",
        ),
    ],
)
def test_lines_read_as_sentences(report: Report, line: str) -> None:
    assert journal.render(report)[1] == line


def test_a_crash_is_an_error_and_a_planned_end_is_not() -> None:
    def level(reason: Reason) -> int:
        status = ExitStatus(code=0)
        return journal.render(Report(Happening.WORKER_EXITED, 0, 1, 2, None, status, reason))[0]

    assert {reason: level(reason) for reason in Reason} == {
        Reason.CRASH: logging.ERROR,
        Reason.BOOT: logging.ERROR,
        Reason.OOM: logging.ERROR,
        Reason.HANG: logging.ERROR,
        Reason.TIMEOUT: logging.WARNING,
        Reason.RECYCLE: logging.INFO,
        Reason.RELOAD: logging.INFO,
        Reason.SCALE: logging.INFO,
        Reason.OPERATOR: logging.INFO,
        Reason.STOP: logging.INFO,
    }


def test_what_became_of_a_dead_workers_tasks_is_said(caplog: pytest.LogCaptureFixture) -> None:
    many = tuple(f"t{number}" for number in range(7))
    log = Journal()
    with caplog.at_level(logging.DEBUG):
        log.burial(3, 2, 4711, Burial())
        assert caplog.messages == []
        held = Burial(redelivered=many, dead=("d",), lost=("l",), timed_out=("o",))
        log.burial(3, 2, 4711, held)
    assert caplog.messages == [
        "worker=3 gen=2 pid=4711 held tasks t0, t1, t2, t3, t4 and 2 more: given back",
        "worker=3 gen=2 pid=4711 held task o: ran out of time, ended with an error",
        "worker=3 gen=2 pid=4711 held task d: started too often, dead letter",
        "worker=3 gen=2 pid=4711 held task l: acknowledged before, lost",
    ]


@pytest.mark.parametrize(
    ("workers", "whom"), [(4, "all 4 workers"), (1, "the only worker")], ids=str
)
def test_what_a_listener_was_enforced_for_is_said(
    caplog: pytest.LogCaptureFixture, workers: int, whom: str
) -> None:
    listening = Listening(
        "taskiq.ZeroMQBroker",
        "taskiq.brokers.zmq_broker.ZeroMQBroker",
        "it publishes",
        ("tcp://127.0.0.1:5555", "ipc:///tmp/x"),
        notes=("narrowed to loopback",),
    )
    with caplog.at_level(logging.INFO):
        Journal().listening(listening, workers)
    first, second = caplog.messages
    assert first.startswith("listener: one process listens on tcp://127.0.0.1:5555, ipc:///tmp/x ")
    assert first.endswith(f"for {whom}, because of taskiq.ZeroMQBroker (it publishes)")
    assert second == "listener: narrowed to loopback"


def test_logging_goes_to_stderr_in_the_given_format_under_the_supervisors_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        journal.configure("info", "%(processName)s|%(levelname)s|%(message)s", "text")
        Journal().write(Report(Happening.POOL_READY, detail="2"))
        Journal().write(Report(Happening.ZYGOTE_READY))
        Journal("fast").write(Report(Happening.POOL_READY, detail="1"))
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
    assert capsys.readouterr().err == (
        "supervisor|INFO|ready: 2 workers\nsupervisor|INFO|pool=fast ready: 1 worker\n"
    )


def test_in_json_the_same_facts_are_fields(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    report = Report(
        Happening.WORKER_EXITED,
        3,
        2,
        4711,
        status=ExitStatus(signal=9),
        reason=Reason.CRASH,
        delay=0.25,
    )
    try:
        journal.configure("info", "", "json")
        Journal("fast").write(report)
        Journal().stacks(3, 2, 4711, "Thread 1\n  File app.py\n")
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
    exited, stacks = map(json.loads, capsys.readouterr().err.splitlines())
    who = {"worker": 3, "gen": 2, "worker_pid": 4711, "process": "supervisor"}
    assert (
        exited.items()
        >= {
            **who,
            "pool": "fast",
            "event": "worker_exited",
            "level": "ERROR",
            "reason": "crash",
            "exit": "killed by SIGKILL",
            "delay": 0.25,
        }.items()
    )
    assert stacks.items() >= {**who, "stacks": "Thread 1\n  File app.py"}.items()

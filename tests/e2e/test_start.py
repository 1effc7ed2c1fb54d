"""Starting: the ways to name an application, and a clear answer to each way of getting it wrong."""

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Supervisor

Start = Callable[..., "Supervisor"]

WRONG_APPLICATIONS = {
    "no-module": ("nothing_here:broker", "", "nothing_here"),
    "no-attribute": ("wrong:nothing_here", "", "nothing_here"),
    "no-colon": ("wrong", "", "module:"),
    "not-a-broker": ("wrong:broker", "broker = 42", "int"),
    "in-memory": (
        "wrong:broker",
        "from taskiq import InMemoryBroker\nbroker = InMemoryBroker()",
        "SharedMemoryBroker",
    ),
}


@pytest.mark.parametrize(
    ("path", "text", "said"), WRONG_APPLICATIONS.values(), ids=WRONG_APPLICATIONS.keys()
)
def test_a_wrong_application_is_one_line_and_exit_status_3(
    supervise: Start, workdir: Path, path: str, text: str, said: str
) -> None:
    (workdir / "wrong.py").write_text(text)
    supervisor = supervise(path, "--workers", "2")
    assert supervisor.wait() in {2, 3} if path == "wrong" else supervisor.wait() == 3
    log = supervisor.log.wait_for_end(timeout=5)
    assert said in log
    assert "Traceback" not in log


def test_an_exception_in_the_application_shows_its_own_traceback_once(
    supervise: Start, workdir: Path
) -> None:
    (workdir / "wrong.py").write_text("def settings():\n    return 1 / 0\n\nsettings()\n")
    supervisor = supervise("wrong:broker", "--workers", "4")
    assert supervisor.wait() == 3
    log = supervisor.log.wait_for_end(timeout=5)
    assert log.count("Traceback") == 1
    assert "ZeroDivisionError: division by zero" in log
    assert 'wrong.py", line 2, in settings' in log
    assert "taskiq_supervise/" not in log
    assert "importlib" not in log


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("preload", [(), ("--no-preload",)], ids=["preload", "no-preload"])
def test_an_argument_that_the_receiver_does_not_take_is_one_line_and_exit_status_3(
    supervise: Start, preload: tuple[str, ...]
) -> None:
    supervisor = supervise("app:broker", "--receiver_arg", "foo=1", *preload)
    assert supervisor.wait() == 3
    log = supervisor.log.wait_for_end(timeout=5)
    assert "Traceback" not in log
    (refusal,) = [line for line in log.splitlines() if "INFO" not in line]
    assert "--receiver_arg foo=1: got an unexpected keyword argument 'foo'" in refusal


@pytest.mark.usefixtures("app")
def test_files_beside_the_application_do_not_stand_in_for_the_standard_library(
    supervise: Start, workdir: Path
) -> None:
    for name in ("queue", "typing", "signal"):
        (workdir / f"{name}.py").write_text("raise SystemExit('not the one that was meant')\n")
    supervise("app:broker").wait_ready()


def test_a_syntax_error_in_the_application_names_its_line(supervise: Start, workdir: Path) -> None:
    (workdir / "wrong.py").write_text("broker = (\n")
    supervisor = supervise("wrong:broker")
    assert supervisor.wait() == 3
    assert 'wrong.py", line 1' in supervisor.log.wait_for_end(timeout=5)


def test_a_module_that_the_application_misses_is_named(supervise: Start, workdir: Path) -> None:
    (workdir / "wrong.py").write_text("import not_installed_anywhere\n")
    supervisor = supervise("wrong:broker")
    assert supervisor.wait() == 3
    assert "not_installed_anywhere" in supervisor.log.wait_for_end(timeout=5)


@pytest.mark.parametrize(
    "arguments",
    [
        ("app:broker", "--workers", "0"),
        ("app:broker", "--workers", "-1"),
        ("app:broker", "--workers", "many"),
        ("app:broker", "--no-such-option"),
        ("app:broker", "--graceful-timeout", "-1"),
        ("app:broker", "--graceful-timeout", "nan"),
        ("app:broker", "--shutdown-timeout", "inf"),
        ("app:broker", "--log-format", "%d"),
        ("app:broker", "--log-format", "%(bogus)s"),
        (),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_a_usage_error(
    supervise: Start, app: Any, arguments: tuple[str, ...]
) -> None:
    supervisor = supervise(*arguments)
    assert supervisor.wait() == 2
    log = supervisor.log.wait_for_end(timeout=5)
    assert "Traceback" not in log
    if arguments:
        assert arguments[1] in log


def test_a_broadcast_broker_without_a_listener_and_with_more_workers_is_refused_with_the_reason(
    supervise: Start, workdir: Path
) -> None:
    (workdir / "wrong.py").write_text(
        "from taskiq import ZeroMQBroker\nbroker = ZeroMQBroker(zmq_pub_host='ipc://x')\n"
    )
    supervisor = supervise("wrong:broker", "--workers", "2", "--no-single-listener")
    assert supervisor.wait() == 3
    log = supervisor.log.wait_for_end(timeout=5)
    assert "every" in log
    assert "leave --no-single-listener out" in log
    assert "Traceback" not in log


def test_a_second_supervisor_with_the_same_name_is_refused_and_names_the_first(
    supervise: Start, app: Any
) -> None:
    first = supervise("app:broker").wait_ready()
    second = supervise("app:broker")
    assert second.wait() == 4
    log = second.log.wait_for_end(timeout=5)
    assert str(first.pid) in log
    assert "Traceback" not in log
    assert first.stop() == 0


def test_a_second_supervisor_on_the_same_queue_is_refused_and_names_the_first(
    supervise: Start, app: Any
) -> None:
    first = supervise("app:broker").wait_ready()
    second = supervise("app:broker", "--name", "another")
    assert second.wait() == 4
    log = second.log.wait_for_end(timeout=5)
    assert str(first.pid) in log
    assert "Traceback" not in log
    assert first.stop() == 0


def test_a_supervisor_that_was_killed_is_no_obstacle_to_the_next(
    supervise: Start, app: Any
) -> None:
    supervise("app:broker").wait_ready().kill_everything()
    assert supervise("app:broker").wait_ready().stop() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("app:broker", "--workers", "3"),
        ("--workers", "3", "app:broker"),
        ("-w", "3", "app:broker"),
        ("run", "app:broker", "--workers=3"),
        ("run", "-w3", "app:broker"),
        ("app:make_broker", "-w", "3"),
    ],
    ids=" ".join,
)
async def test_the_command_line_can_be_written_in_several_orders(
    supervise: Start, client: Any, arguments: tuple[str, ...]
) -> None:
    supervisor = supervise(*arguments).wait_ready()
    assert len(supervisor.worker_pids()) == 3
    task = await client.record.kiq(1)
    assert (await task.wait_result(timeout=30)).return_value == 1
    assert supervisor.stop() == 0


def test_an_option_can_come_from_the_environment(supervise: Start, app: Any) -> None:
    environment = {"TASKIQ_SUPERVISE_WORKERS": "3", "TASKIQ_SUPERVISE_NAME": "named"}
    supervisor = supervise("app:broker", environment=environment).wait_ready()
    status = supervisor.status()
    assert (len(status["workers"]), status["name"]) == (3, "named")
    assert supervisor.stop() == 0


async def test_an_application_elsewhere_is_found_by_app_dir(
    supervise: Start, client: Any, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = workdir / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    supervisor = supervise("app:broker", "--app-dir", str(workdir)).wait_ready()
    task = await client.divide.kiq(6, 3)
    assert (await task.wait_result(timeout=30)).return_value == 2
    assert supervisor.stop() == 0


def elsewhere(number: int) -> None:
    """Stands for a task that only the workers have."""


async def test_tasks_in_further_modules_are_found(
    supervise: Start, client: Any, workdir: Path
) -> None:
    (workdir / "more.py").write_text(
        "from app import broker\n@broker.task\nasync def double(n: int) -> int:\n    return n * 2\n"
    )
    supervisor = supervise("app:broker", "more").wait_ready()
    task = await client.broker.register_task(elsewhere, task_name="more:double").kiq(21)
    assert (await task.wait_result(timeout=30)).return_value == 42
    assert supervisor.stop() == 0


def test_help_says_how_to_start(supervise: Start) -> None:
    supervisor = supervise("--help")
    assert supervisor.wait() == 0
    text = supervisor.log.wait_for_end(timeout=5)
    for word in ("module:", "--workers", "status"):
        assert word in text


def test_workers_have_titles_that_tell_them_apart(supervise: Start, app: Any) -> None:
    supervisor = supervise("app:broker", "--workers", "2").wait_ready()
    titles = [
        Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
        for pid in supervisor.worker_pids()
    ]
    assert titles == [f"taskiq-supervise: worker {slot} [app:broker]" for slot in range(2)]
    assert supervisor.stop() == 0


def test_nothing_is_put_outside_the_given_directories(supervise: Start, workdir: Path) -> None:
    name = uuid.uuid4().hex
    (workdir / "named.py").write_text(
        f"from taskiq_supervise import SharedMemoryBroker\nbroker = SharedMemoryBroker({name!r})\n"
    )
    supervisor = supervise("named:broker", "--name", name).wait_ready()
    runtime = Path(os.environ["TASKIQ_SUPERVISE_RUNTIME_DIR"])
    assert (runtime / name / "control.sock").is_socket()
    assert (Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]) / name).is_dir()
    places = ("/dev/shm", "/run", tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", "/run"))
    for place in places:
        assert list(Path(place).glob(f"taskiq-supervise*/{name}")) == []
    assert supervisor.stop() == 0

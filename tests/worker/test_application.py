"""What is wrong with an application is said to the one who wrote it, in their terms."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from taskiq.receiver import Receiver

from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.worker.application import (
    _FROM_OPTIONS,
    Application,
    ApplicationError,
    load,
)
from taskiq_supervise.worker.config import WorkerConfig
from taskiq_supervise.worker.runtime import Worker

BROKER = "from taskiq_supervise import SharedMemoryBroker\nbroker = SharedMemoryBroker()\n"


@pytest.fixture(autouse=True)
def clean_imports(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test's modules and folders are forgotten with it."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if str(workdir) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(path: str, text: str) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def failing(app: str, **options: object) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        load(WorkerConfig(app, **options))  # type: ignore[arg-type]
    return caught.value


def test_a_broker_is_imported_from_the_current_folder() -> None:
    write("shop.py", BROKER)
    application = load(WorkerConfig("shop:broker"))
    assert isinstance(application, Application)
    assert isinstance(application.broker, SharedMemoryBroker)
    assert application.broker.is_worker_process
    assert application.receiver is Receiver


def test_a_factory_is_called() -> None:
    write("shop.py", BROKER + "def make():\n    return broker\n")
    assert isinstance(load(WorkerConfig("shop:make")).broker, SharedMemoryBroker)


def test_the_app_dir_is_searched_first() -> None:
    write("shop.py", "broker = 1")
    write("inner/shop.py", BROKER)
    assert isinstance(load(WorkerConfig("shop:broker", app_dir="inner")).broker, SharedMemoryBroker)


def test_task_modules_are_imported_after_the_broker_knows_that_it_is_in_a_worker() -> None:
    write("shop.py", BROKER)
    write(
        "jobs.py",
        "from shop import broker\nassert broker.is_worker_process\n"
        "@broker.task(task_name='named')\ndef job(): pass\n",
    )
    write("deep/tasks.py", "from shop import broker\n@broker.task(task_name='deep')\ndef f(): pass")
    write("broken/tasks.py", "import not_here_at_all")
    broker = load(WorkerConfig("shop:broker", modules=("jobs",), fs_discover=True)).broker
    assert broker.find_task("named") is not None
    assert broker.find_task("deep") is not None


@pytest.mark.parametrize("path", ["shop", "shop:", ":broker", "shop:broker:x", ""])
def test_a_path_of_another_form_is_invalid(path: str) -> None:
    error = failing(path)
    assert error.kind == "invalid"
    assert "module:variable" in error.message


@pytest.mark.parametrize(
    ("path", "names"), [("shop:broker", "'shop'"), ("shop.inner:broker", "there is no 'shop'")]
)
def test_a_module_that_is_not_there_is_one_line(path: str, names: str, workdir: Path) -> None:
    error = failing(path)
    assert (error.kind, error.traceback) == ("missing", None)
    assert names in error.message
    assert str(workdir) in error.message
    assert "\n" not in error.message


def test_a_task_module_that_is_not_there_is_one_line() -> None:
    write("shop.py", BROKER)
    error = failing("shop:broker", modules=("jobs",))
    assert error.kind == "missing"
    assert "of the task modules, 'jobs', is not found" in error.message


def test_an_attribute_that_is_not_there_is_one_line_with_the_broker_that_is() -> None:
    write("shop.py", BROKER.replace("broker =", "the_broker ="))
    error = failing("shop:brokr")
    assert error.kind == "missing"
    assert "has no attribute 'brokr'; did you mean 'the_broker'?" in error.message


def test_a_missing_import_inside_the_application_is_the_users_own_traceback() -> None:
    write("shop.py", "import not_here_at_all\n")
    error = failing("shop:broker")
    assert error.kind == "user"
    assert "No module named 'not_here_at_all'" in error.message
    assert error.traceback is not None
    assert 'shop.py", line 1, in <module>' in error.traceback
    assert "taskiq_supervise" not in error.traceback
    assert "importlib" not in error.traceback


def test_an_application_that_imports_itself_wrongly_is_not_taken_for_missing() -> None:
    write("shop/__init__.py", "import shop.nothing\n")
    error = failing("shop.nothing:broker")
    assert error.kind == "user"
    assert "shop/__init__.py" in str(error.traceback)


def test_an_exception_in_the_application_shows_its_causes_and_none_of_our_frames() -> None:
    write(
        "shop.py",
        "def settings():\n    try:\n        return {}['url']\n"
        "    except KeyError as error:\n        raise RuntimeError('no url') from error\n"
        "settings()\n",
    )
    error = failing("shop:broker")
    assert error.kind == "user"
    assert error.message == "importing 'shop' failed: RuntimeError: no url"
    assert str(error.traceback).count("Traceback") == 2
    assert "taskiq_supervise" not in str(error.traceback)


def test_a_syntax_error_names_its_line() -> None:
    write("shop.py", "x = 1\nbroker = (\n")
    error = failing("shop:broker")
    assert error.kind == "user"
    assert 'shop.py", line 2' in str(error.traceback)


def test_an_application_that_exits_is_told_so() -> None:
    write("shop.py", "raise SystemExit(3)")
    error = failing("shop:broker")
    assert error.kind == "user"
    assert "called sys.exit()" in error.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("broker = 42", "shop:broker is a builtins.int, not a taskiq broker"),
        ("from taskiq import InMemoryBroker\nbroker = InMemoryBroker()", "use taskiq_supervise.Sh"),
        ("def broker():\n    return 1", "is a builtins.int"),
        ("async def broker():\n    return 1", "is async"),
        (
            "import taskiq\nbroker = taskiq.TaskiqScheduler(taskiq.InMemoryBroker(), [])",
            "is a scheduler",
        ),
    ],
)
def test_what_is_not_a_broker_to_run_is_invalid(text: str, says: str) -> None:
    write("shop.py", text)
    error = failing("shop:broker")
    assert (error.kind, error.traceback) == ("invalid", None)
    assert says in error.message


def test_a_factory_that_fails_is_the_users_own_traceback() -> None:
    write("shop.py", "def make():\n    return 1 / 0\n")
    error = failing("shop:make")
    assert error.kind == "user"
    assert "the broker factory shop:make failed: ZeroDivisionError" in error.message
    assert "line 2, in make" in str(error.traceback)


OWN_RECEIVER = """
from taskiq.receiver import Receiver

class Own(Receiver):
    def __init__(self, *args, greeting, **kwargs):
        super().__init__(*args, **kwargs)

class Strict(Receiver):
    def __init__(self, broker):
        super().__init__(broker)
"""


@pytest.mark.parametrize(
    ("receiver", "arguments", "says"),
    [
        ("taskiq.receiver:Receiver", {"foo": "1"}, "--receiver_arg foo=1: got an unexpected"),
        ("taskiq.receiver:Receiver", {"ack_type": "manual"}, "the worker sets the receiver's"),
        ("shop:Own", {}, "the receiver shop:Own cannot be made: missing a required"),
        ("shop:Own", {"greeting": "x", "broker": "y"}, "receiver_arg broker=y: the worker sets"),
        ("shop:Strict", {}, "got an unexpected keyword argument 'executor'"),
    ],
)
def test_arguments_that_the_receiver_does_not_take_are_invalid(
    receiver: str, arguments: dict[str, str], says: str
) -> None:
    write("shop.py", BROKER + OWN_RECEIVER)
    error = failing("shop:broker", receiver=receiver, receiver_arg=tuple(arguments.items()))
    assert (error.kind, error.traceback) == ("invalid", None)
    assert says in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("receiver", "arguments"),
    [
        ("taskiq.receiver:Receiver", {"max_tasks_to_execute": "1"}),
        ("shop:Own", {"greeting": "x"}),
        ("shop:Own", {"greeting": "x", "on_exit": "y"}),
    ],
)
def test_arguments_that_the_receiver_takes_are_left_to_it(
    receiver: str, arguments: dict[str, str]
) -> None:
    write("shop.py", BROKER + OWN_RECEIVER)
    load(WorkerConfig("shop:broker", receiver=receiver, receiver_arg=tuple(arguments.items())))


def test_the_receiver_is_checked_with_what_a_worker_gives_it() -> None:
    """As `Worker._receiver` calls it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(Worker._receiver)))
    (call,) = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.keywords)
    assert {word.arg for word in call.keywords if word.arg} == set(_FROM_OPTIONS)


def test_a_receiver_has_to_be_one() -> None:
    write("shop.py", BROKER + "class Own: pass\n")
    error = failing("shop:broker", receiver="shop:Own")
    assert error.kind == "invalid"
    assert "not a subclass of taskiq's Receiver" in error.message

"""Importing the user's application, and saying well what is wrong with it when that fails.

The one who reads these messages has just written the application. A module or attribute that is not
there is one line. An exception inside the application is its own traceback, without our frames and
without the import machinery's.
"""

import importlib
import inspect
import logging
import sys
import traceback
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from taskiq.abc.broker import AsyncBroker
from taskiq.cli.utils import import_tasks
from taskiq.receiver import Receiver
from taskiq.scheduler.scheduler import TaskiqScheduler

from taskiq_supervise.broker.errors import UnsuitableBrokerError
from taskiq_supervise.broker.rule import check_suitable, class_name
from taskiq_supervise.worker.config import WorkerConfig

logger = logging.getLogger("taskiq_supervise.worker")

_FROM_OPTIONS = (
    *("broker", "executor", "validate_params", "max_async_tasks", "max_async_tasks_jitter"),
    *("max_prefetch", "propagate_exceptions", "run_startup", "ack_type"),
)
"""What a worker gives to its receiver, beside what `--receiver_arg` says."""

_IMPORT_MACHINERY = ("<frozen importlib", "<frozen runpy")


class ApplicationError(Exception):
    """The application cannot be used.

    kind: "missing": no such module or attribute; "user": an exception in the user's code;
    "invalid": it is there, but not what it should be. traceback: the user's frames, for "user".
    """

    def __init__(
        self,
        kind: Literal["missing", "user", "invalid"],
        message: str,
        traceback: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.traceback = traceback


@dataclass(frozen=True)
class Application:
    """What was imported."""

    broker: AsyncBroker
    receiver: type[Receiver]


def load(config: WorkerConfig) -> Application:
    """Imports broker, task modules and receiver. Raises ApplicationError."""
    for folder in (str(Path.cwd()), config.app_dir and str(Path(config.app_dir).absolute())):
        # Last in, first searched; and left there, for imports inside tasks.
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)
    broker = _broker(config.app)
    # Before the tasks are imported: applications ask for it at import.
    broker.is_worker_process = True
    for module in config.modules:
        _import(module, f"of the task modules, {module!r}")
    if config.fs_discover:
        _discover(config)
    return Application(broker, _receiver(config.receiver, dict(config.receiver_arg)))


def _broker(path: str) -> AsyncBroker:
    found = _object(path, "app:broker")
    if inspect.isfunction(found):
        try:
            found = found()
        except BaseException as error:
            raise _user_error(f"the broker factory {path} failed", error) from error
        if inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()
            raise ApplicationError(
                "invalid", f"the broker factory {path} is async; it has to be a plain function"
            )
    if isinstance(found, TaskiqScheduler):
        raise ApplicationError("invalid", f"{path} is a scheduler, not a broker; name its broker")
    if not isinstance(found, AsyncBroker):
        raise ApplicationError(
            "invalid", f"{path} is a {class_name(found)}, not a taskiq broker (an AsyncBroker)"
        )
    try:
        check_suitable(found)
    except UnsuitableBrokerError as error:
        raise ApplicationError("invalid", f"{path}: {error}") from None
    return found


def _receiver(path: str, arguments: dict[str, str]) -> type[Receiver]:
    found = _object(path, "taskiq.receiver:Receiver")
    if not (isinstance(found, type) and issubclass(found, Receiver)):
        raise ApplicationError(
            "invalid", f"the receiver {path} is not a subclass of taskiq's Receiver"
        )
    _check_arguments(path, found, arguments)
    return found


def _check_arguments(path: str, receiver: type[Receiver], arguments: dict[str, str]) -> None:
    """Whether a worker can make it, as far as its constructor's signature tells.

    What supervises it hands all arguments on to it. A constructor that takes any (`**kwargs`) says
    by itself, when it is called, what it makes of them.
    """
    for name, value in arguments.items():
        if name in _FROM_OPTIONS:
            raise ApplicationError(
                "invalid",
                f"--receiver_arg {name}={value}: the worker sets the receiver's "
                f"{name!r} itself, from its other options",
            )
    try:
        inspect.signature(receiver).bind(**dict.fromkeys(_FROM_OPTIONS), **arguments)
    except TypeError as error:
        given = "".join(f" --receiver_arg {key}={value}" for key, value in arguments.items())
        raise ApplicationError(
            "invalid",
            f"the receiver {path} cannot be made{given and ' with'}{given}: {error}",
        ) from None


def _object(path: str, example: str) -> Any:
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute) or ":" in attribute:
        raise ApplicationError(
            "invalid", f"{path!r} is not of the form module:variable, as {example}"
        )
    module = _import(module_name, f"of {path}, {module_name!r}")
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ApplicationError("missing", _no_attribute(module, attribute)) from None
    except BaseException as error:  # a module may compute its attributes
        raise _user_error(f"reading {path} failed", error) from error


def _no_attribute(module: Any, attribute: str) -> str:
    where = getattr(module, "__file__", None)
    message = f"module {module.__name__!r} ({where}) has no attribute {attribute!r}"
    brokers = [name for name, value in vars(module).items() if isinstance(value, AsyncBroker)]
    near = get_close_matches(attribute, vars(module), n=1)
    hint = brokers[:1] or near
    return f"{message}; did you mean {hint[0]!r}?" if hint else message


def _import(name: str, which: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        parents = {name.rsplit(".", count)[0] for count in range(name.count(".") + 1)}
        if error.name in parents and not _user_frames(error.__traceback__):
            missing = "" if error.name == name else f" (there is no {error.name!r})"
            raise ApplicationError(
                "missing",
                f"the module {which}, is not found{missing}; searched in {_searched()}",
            ) from None
        raise _user_error(f"importing {name!r} failed", error) from error
    except BaseException as error:
        raise _user_error(f"importing {name!r} failed", error) from error


def _searched() -> str:
    places = [place or "." for place in sys.path[:2]]
    return " and ".join(places) + " and the installed packages"


def _discover(config: WorkerConfig) -> None:
    """As taskiq does it: a discovered file that cannot be imported is logged, and left out."""
    try:
        import_tasks([], list(config.tasks_pattern), fs_discover=True)
    except BaseException as error:
        raise _user_error("importing the discovered tasks failed", error) from error


def _user_error(what: str, error: BaseException) -> ApplicationError:
    if isinstance(error, SystemExit):
        what += ": it called sys.exit() (is the guard `if __name__ == '__main__'` missing?)"
    return ApplicationError("user", f"{what}: {_summary(error)}", user_traceback(error))


def _summary(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def user_traceback(error: BaseException) -> str:
    """The traceback as the user's code would have printed it, without our frames."""
    shown = traceback.TracebackException.from_exception(error)
    _strip(shown, set())
    return "".join(shown.format())


def _strip(shown: traceback.TracebackException, seen: set[int]) -> None:
    if id(shown) in seen:
        return
    seen.add(id(shown))
    kept = [frame for frame in shown.stack if not _is_ours(frame.filename)]
    shown.stack = traceback.StackSummary.from_list(kept)
    for other in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        if other is not None:
            _strip(other, seen)


def _user_frames(frames: TracebackType | None) -> bool:
    return any(not _is_ours(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(frames))


def _is_ours(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith(_IMPORT_MACHINERY)

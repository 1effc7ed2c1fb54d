"""The options of `run`: those of `taskiq worker`, and ours, under their headings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from taskiq_supervise.supervisor.commands.grouped_options import GroupedOption
from taskiq_supervise.supervisor.commands.option_types import (
    Duration,
    Share,
    Size,
    check_application,
    check_http,
    check_log_format,
    check_name,
    split_pairs,
)
from taskiq_supervise.supervisor.core.model import MAX_WORKERS
from taskiq_supervise.worker.config import (
    ACK_TYPES,
    LOG_FORMAT,
    LOG_LEVELS,
    LOG_STYLES,
    TRANSPORTS,
    WorkerConfig,
)

F = TypeVar("F", bound=Callable[..., Any])

_WORKER_COUNT = click.IntRange(1, MAX_WORKERS)
_AT_LEAST_0 = click.IntRange(min=0)
_AT_LEAST_1 = click.IntRange(min=1)
_DURATION = Duration()
_METAVARS: dict[type, str] = {
    click.IntRange: "N",
    click.types.IntParamType: "N",
    Share: "X",
    Duration: "TIME",
    Size: "SIZE",
}

_WORKERS = "Workers"
_BROKER = "Broker"
_IMPORT = "Application"
_TASKS = "Tasks"
_HEALTH = "Health"
_RECYCLING = "Recycling (the replacement is ready first)"
_RELOAD = "Reload"
_STOP = "Stopping"
_LOG = "Logging"
_FILE = "Configuration file"


def application(function: F) -> F:
    modules = click.argument("modules", nargs=-1)
    app = click.argument("app", callback=check_application, metavar="module:broker", required=False)
    return app(modules(function))


def _option(group: str, *names: str, **kwargs: Any) -> Callable[[F], F]:
    metavar = _METAVARS.get(type(kwargs.get("type")))
    if metavar is not None:
        kwargs.setdefault("metavar", metavar)
    if "default" in kwargs and not kwargs.get("is_flag") and kwargs["default"] is not None:
        kwargs.setdefault("show_default", True)
    return click.option(*names, cls=GroupedOption, group=group, **kwargs)


_OPTIONS: list[Callable[[Any], Any]] = [
    _option(
        _WORKERS,
        "--workers",
        "-w",
        type=_WORKER_COUNT,
        show_default=str(WorkerConfig.workers),
        help="Number of worker processes, at the start.",
    ),
    _option(
        _WORKERS,
        "--min-workers",
        type=_WORKER_COUNT,
        show_default="--workers",
        help="Shrink to this many when there is little to do.",
    ),
    _option(
        _WORKERS,
        "--max-workers",
        type=click.IntRange(0, MAX_WORKERS),
        show_default="--workers",
        help="Grow to this many while tasks wait; 0: keep the number as it is.",
    ),
    _option(
        _WORKERS,
        "--name",
        instance=True,
        callback=check_name,
        metavar="NAME",
        show_default="from module:broker",
        help="Name of this instance, for `status`, `reload` and `scale`.",
    ),
    _option(
        _WORKERS,
        "--no-preload",
        is_flag=True,
        help="Let each worker import the application, instead of once for all of them.",
    ),
    _option(
        _WORKERS,
        "--nice",
        type=click.IntRange(-20, 19),
        default=0,
        help="Priority of the workers; more is less. Below 0 needs the right to.",
    ),
    _option(_WORKERS, "--pin", is_flag=True, help="Keep each worker on one CPU, in turn."),
    _option(
        _BROKER,
        "--single-listener/--no-single-listener",
        default=None,
        show_default="where each worker would get every task",
        help="Let one process listen to the broker, for all workers.",
    ),
    _option(
        _BROKER,
        "--transport",
        type=click.Choice(TRANSPORTS),
        default="shm",
        help="What lies between that process and the workers: shared memory, or ZeroMQ where there "
        "can be none.",
    ),
    _option(
        _IMPORT,
        "--app-dir",
        "-d",
        type=click.Path(exists=True, file_okay=False),
        metavar="FOLDER",
        show_default="the current one",
        help="Folder to import the application from.",
    ),
    _option(
        _IMPORT,
        "--fs-discover",
        "-fsd",
        is_flag=True,
        help="Find and import modules with tasks below the current folder.",
    ),
    _option(
        _IMPORT,
        "--tasks-pattern",
        "-tp",
        metavar="GLOB",
        multiple=True,
        default=["**/tasks.py"],
        help="Which files --fs-discover takes. May be repeated.",
    ),
    _option(
        _TASKS,
        "--max-async-tasks",
        type=click.INT,
        default=100,
        help="Tasks that one worker runs at the same time; 0: any number.",
    ),
    _option(
        _TASKS,
        "--max-async-tasks-jitter",
        type=_AT_LEAST_0,
        default=0,
        help="Random addition to --max-async-tasks, from 0 to this.",
    ),
    _option(
        _TASKS,
        "--max-prefetch",
        type=_AT_LEAST_0,
        default=0,
        help="Messages that a worker takes beyond what it runs.",
    ),
    _option(
        _TASKS,
        "--max-threadpool-threads",
        type=_AT_LEAST_1,
        show_default="Python's own",
        help="Threads for sync tasks in one worker.",
    ),
    _option(
        _TASKS,
        "--use-process-pool",
        is_flag=True,
        help="Run sync tasks in processes instead of threads.",
    ),
    _option(
        _TASKS,
        "--max-process-pool-processes",
        type=_AT_LEAST_1,
        show_default="one per CPU",
        help="Processes for sync tasks in one worker.",
    ),
    _option(
        _TASKS,
        "--task-timeout",
        type=_DURATION,
        default="0",
        show_default="no limit",
        help="For any task, sync ones too: the worker of one that takes longer is replaced.",
    ),
    _option(
        _TASKS,
        "--max-deliveries",
        type=click.IntRange(1, 255),
        default=3,
        help="Starts of one task in all when it kills its workers; then it is a dead letter.",
    ),
    _option(
        _TASKS,
        "--ack-type",
        type=click.Choice(ACK_TYPES, case_sensitive=False),
        default="when_saved",
        help="When a message is acknowledged.",
    ),
    _option(
        _TASKS,
        "--no-parse",
        is_flag=True,
        help="Don't convert arguments to the types of the task's signature.",
    ),
    _option(
        _TASKS,
        "--no-propagate-errors",
        is_flag=True,
        help="Don't raise a task's exception in its generator dependencies.",
    ),
    _option(
        _TASKS,
        "--receiver",
        metavar="module:class",
        default="taskiq.receiver:Receiver",
        help="What runs the tasks.",
    ),
    _option(
        _TASKS,
        "--receiver-arg",
        "--receiver_arg",
        callback=split_pairs,
        metavar="key=value",
        multiple=True,
        help="Argument for the receiver. May be repeated.",
    ),
    _option(
        _HEALTH,
        "--boot-timeout",
        type=_DURATION,
        default="60s",
        help="For importing the application, and for a worker to get ready; 0: no limit.",
    ),
    _option(
        _HEALTH,
        "--hang-warn",
        type=_DURATION,
        default="10s",
        help="Report a worker whose event loop is blocked for so long, with its stacks; 0: don't.",
    ),
    _option(
        _HEALTH,
        "--hang-timeout",
        type=_DURATION,
        default="0",
        show_default="never",
        help="Replace a worker whose event loop is blocked for so long.",
    ),
    _option(
        _HEALTH,
        "--http",
        instance=True,
        callback=check_http,
        metavar="HOST:PORT",
        show_default="nowhere",
        help="Serve /healthz and /readyz there; without HOST on all interfaces.",
    ),
    _option(
        _HEALTH,
        "--max-fails",
        in_file=False,
        type=click.INT,
        default=-1,
        show_default=False,
        help="Taken from `taskiq worker`, without effect: failing workers are replaced ever more "
        "slowly, and never given up.",
    ),
    _option(
        _RECYCLING,
        "--max-tasks-per-worker",
        "--max-tasks-per-child",
        "max_tasks_per_worker",
        type=_AT_LEAST_0,
        default=0,
        show_default="any number",
        help="Replace a worker that has run so many tasks.",
    ),
    _option(
        _RECYCLING,
        "--max-memory",
        type=Size(),
        default="0",
        show_default="no limit",
        help="Replace a worker that takes more, with its child processes, for example 500M.",
    ),
    _option(
        _RECYCLING,
        "--max-lifetime",
        type=_DURATION,
        default="0",
        show_default="no limit",
        help="Replace a worker of this age, for example 12h.",
    ),
    _option(
        _RECYCLING,
        "--recycle-jitter",
        type=Share(),
        default=0.1,
        help="Each worker's limits are lower by a random part, up to this.",
    ),
    _option(
        _RELOAD,
        "--reload",
        "-r",
        instance=True,
        is_flag=True,
        help="Reload when a file changes. Needs the extra `reload`, for .gitignore files.",
    ),
    _option(
        _RELOAD,
        "--reload-dir",
        instance=True,
        type=click.Path(exists=True, file_okay=False),
        metavar="FOLDER",
        multiple=True,
        show_default="the current one, and --app-dir",
        help="Folder to watch. May be repeated.",
    ),
    _option(
        _RELOAD,
        "--do-not-use-gitignore",
        instance=True,
        is_flag=True,
        help="Watch files that .gitignore names, too.",
    ),
    _option(
        _STOP,
        "--graceful-timeout",
        "--wait-tasks-timeout",
        "graceful_timeout",
        type=_DURATION,
        default="30s",
        help="For running tasks to finish; those that don't are given back to the queue.",
    ),
    _option(
        _STOP,
        "--shutdown-timeout",
        type=_DURATION,
        default="5s",
        help="For the broker's own shutdown.",
    ),
    _option(
        _STOP,
        "--hardkill-count",
        instance=True,
        type=_AT_LEAST_1,
        default=3,
        help="From this many SIGTERM or SIGINT on, workers are killed at once (SIGQUIT: always).",
    ),
    _option(
        _LOG,
        "--log-level",
        metavar="LEVEL",
        type=click.Choice(LOG_LEVELS, case_sensitive=False),
        default="INFO",
        help="Of the supervisor and its workers: DEBUG, INFO, WARNING, ERROR or CRITICAL.",
    ),
    _option(
        _LOG,
        "--log-format",
        instance=True,
        callback=check_log_format,
        metavar="FORMAT",
        default=LOG_FORMAT,
        show_default=False,
        help="As for Python's logging.",
    ),
    _option(
        _LOG,
        "--log-style",
        instance=True,
        type=click.Choice(LOG_STYLES, case_sensitive=False),
        show_default="journal under systemd, else text",
        help="Lines in --log-format, one JSON object per line, or systemd's journal with fields.",
    ),
    _option(
        _LOG,
        "--no-configure-logging",
        is_flag=True,
        help="Leave the workers' logging to the application.",
    ),
    _option(
        _FILE,
        "--config",
        in_file=False,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        show_default="taskiq-supervise.toml, or pyproject.toml",
        help="File to read options from; a pyproject.toml has them in [tool.taskiq-supervise].",
    ),
    _option(_FILE, "--no-config", in_file=False, is_flag=True, help="Don't read one."),
    _option(
        _FILE,
        "--check-config",
        in_file=False,
        is_flag=True,
        help="Check the options and the file, say what would be started, and end.",
    ),
]


def run_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function

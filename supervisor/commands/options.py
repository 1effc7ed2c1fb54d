"""The options of `run`: those of `taskiq worker`, and ours; their groups, their environment.

Each option is also read from TASKIQ_SUPERVISE_<OPTION>; the name is derived here, in one place,
from the option's long names, so that none can be forgotten.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from taskiq_supervise.supervisor.model import Settings
from taskiq_supervise.supervisor.policy import RestartPolicy
from taskiq_supervise.supervisor.runtime import (
    RuntimeDirectoryError,
    check_instance_name,
    instance_name,
)
from taskiq_supervise.supervisor.shell import Run
from taskiq_supervise.worker.config import ACK_TYPES, LOG_FORMAT, LOG_LEVELS, WorkerConfig

F = TypeVar("F", bound=Callable[..., Any])

# Seconds beyond its own limits that a worker gets to give back and close down before SIGKILL: one
# for the `finally` blocks of its tasks, two for a machine that is busy.
_STOP_MARGIN = 3.0
_MAX_WORKERS = 500
"""A queue has room for 512 participants, clients among them."""


class GroupedOption(click.Option):
    """An option that knows under which heading the help shows it."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group
        names = [name for name in self.opts if name.startswith("--")]
        self.envvar = [_variable(name) for name in names]
        self.show_envvar = False


def _variable(option: str) -> str:
    return "TASKIQ_SUPERVISE_" + option.lstrip("-").replace("-", "_").upper()


class RunCommand(click.Command):
    """Shows its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_groups(ctx, formatter)

    def format_groups(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.params:
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, GroupedOption) and record is not None:
                groups.setdefault(parameter.group, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["module:broker [MODULES]... [OPTIONS]"]


def _check_application(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    module, colon, variable = value.partition(":")
    if not (module and colon and variable):
        raise click.BadParameter(
            f"{value!r} is neither a command nor an application written as module:variable, "
            "for example app:broker"
        )
    return value


def _check_name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    try:
        return value if value is None else check_instance_name(value)
    except RuntimeDirectoryError as error:
        raise click.BadParameter(str(error)) from None


def _split_pairs(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    pairs = []
    for value in values:
        key, equals, rest = value.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{value!r} is not written as key=value")
        pairs.append((key, rest))
    return tuple(pairs)


def _check_log_format(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Formats one record: logging itself finds most mistakes only then, and in every process."""
    record = logging.LogRecord("taskiq_supervise", logging.INFO, __file__, 0, "", (), None)
    try:
        logging.Formatter(value).format(record)
    except (ValueError, TypeError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is no format for Python's logging: {error}") from None
    return value


class _Seconds(click.FloatRange):
    """Zero or more, and an end to it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a finite number of seconds", param, ctx)
        return seconds


def application(function: F) -> F:
    modules = click.argument("modules", nargs=-1)
    app = click.argument("app", callback=_check_application, metavar="module:broker")
    return app(modules(function))


def _option(group: str, *names: str, **kwargs: Any) -> Callable[[F], F]:
    if isinstance(kwargs.get("type"), (click.IntRange, click.FloatRange, click.types.IntParamType)):
        kwargs.setdefault("metavar", "SECONDS" if kwargs["type"] is _SECONDS else "N")
    return click.option(*names, cls=GroupedOption, group=group, **kwargs)


_AT_LEAST_0 = click.IntRange(min=0)
_AT_LEAST_1 = click.IntRange(min=1)
_SECONDS = _Seconds(min=0)

_WORKERS = "Workers"
_IMPORT = "Application"
_TASKS = "Tasks"
_STOP = "Stopping"
_LOG = "Logging"

_OPTIONS: list[Callable[[Any], Any]] = [
    _option(
        _WORKERS,
        "--workers",
        "-w",
        type=click.IntRange(1, _MAX_WORKERS),
        default=2,
        show_default=True,
        help="Number of worker processes.",
    ),
    _option(
        _WORKERS,
        "--name",
        callback=_check_name,
        metavar="NAME",
        show_default="from module:broker",
        help="Name of this instance, for `status`.",
    ),
    _option(
        _WORKERS,
        "--no-preload",
        is_flag=True,
        help="Let each worker import the application, instead of once for all of them.",
    ),
    _option(
        _WORKERS,
        "--max-deliveries",
        type=click.IntRange(1, 255),
        default=3,
        show_default=True,
        help="Starts of one task in all when it kills its workers; then it is a dead letter.",
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
        show_default=True,
        help="Which files --fs-discover takes. May be repeated.",
    ),
    _option(
        _TASKS,
        "--max-async-tasks",
        type=click.INT,
        default=100,
        show_default=True,
        help="Tasks that one worker runs at the same time; 0: any number.",
    ),
    _option(
        _TASKS,
        "--max-async-tasks-jitter",
        type=_AT_LEAST_0,
        default=0,
        show_default=True,
        help="Random addition to --max-async-tasks, from 0 to this.",
    ),
    _option(
        _TASKS,
        "--max-prefetch",
        type=_AT_LEAST_0,
        default=0,
        show_default=True,
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
        "--ack-type",
        type=click.Choice(ACK_TYPES, case_sensitive=False),
        default="when_saved",
        show_default=True,
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
        show_default=True,
        help="What runs the tasks.",
    ),
    _option(
        _TASKS,
        "--receiver_arg",
        callback=_split_pairs,
        metavar="key=value",
        multiple=True,
        help="Argument for the receiver. May be repeated.",
    ),
    _option(
        _STOP,
        "--graceful-timeout",
        "--wait-tasks-timeout",
        "graceful_timeout",
        type=_SECONDS,
        default=30.0,
        show_default=True,
        help="Seconds for running tasks to finish; those that don't are given back to the queue.",
    ),
    _option(
        _STOP,
        "--shutdown-timeout",
        type=_SECONDS,
        default=5.0,
        show_default=True,
        help="Seconds for the broker's own shutdown.",
    ),
    _option(
        _STOP,
        "--hardkill-count",
        type=_AT_LEAST_1,
        default=3,
        show_default=True,
        help="From this many SIGTERM or SIGINT on, workers are killed at once (SIGQUIT: always).",
    ),
    _option(
        _LOG,
        "--log-level",
        metavar="LEVEL",
        type=click.Choice(LOG_LEVELS, case_sensitive=False),
        default="INFO",
        show_default=True,
        help="Of the supervisor and its workers: DEBUG, INFO, WARNING, ERROR or CRITICAL.",
    ),
    _option(
        _LOG,
        "--log-format",
        callback=_check_log_format,
        metavar="FORMAT",
        default=LOG_FORMAT,
        help="As for Python's logging.",
    ),
    _option(
        _LOG,
        "--no-configure-logging",
        "configure_logging",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Leave the workers' logging to the application.",
    ),
]


def run_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def build(values: dict[str, Any]) -> tuple[Run, str]:
    """What the options ask for, and the name of the instance."""
    workers = values["workers"]
    own = {"name", "graceful_timeout", "hardkill_count", "max_deliveries", "no_preload"}
    name = values["name"] or instance_name(values["app"])
    config = WorkerConfig(
        **{key: value for key, value in values.items() if key not in own},
        instance=name,
        preload=not values["no_preload"],
    )
    settings = Settings(
        workers=workers,
        preload=config.preload,
        graceful_timeout=values["graceful_timeout"],
        stop_timeout=values["shutdown_timeout"] + _STOP_MARGIN,
        hardkill_count=values["hardkill_count"],
        restart=RestartPolicy(pool_limit=max(100, 20 * workers)),
    )
    return Run(config, settings, values["max_deliveries"]), name

"""From the command line and the environment to a plan."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import click
import pytest
from tests.supervisor.commands import plan

from taskiq_supervise.supervisor.commands.cli import cli
from taskiq_supervise.supervisor.plan import PoolPlan, Watch


def pool(*arguments: str) -> PoolPlan:
    """The only one of a plan without a file."""
    (found,) = plan("app:broker", *arguments).pools
    assert found.name == ""
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ("app:broker", "app.tasks", "--workers", "3"),
        ("--workers", "3", "app:broker", "app.tasks"),
        ("app:broker", "-w3", "app.tasks"),
        ("run", "app:broker", "app.tasks", "--workers=3"),
        ("run", "-w", "3", "app:broker", "app.tasks"),
    ],
    ids=" ".join,
)
def test_run_is_the_default_command_and_options_go_anywhere(arguments: tuple[str, ...]) -> None:
    (only,) = plan(*arguments).pools
    assert (only.config.app, only.config.modules) == ("app:broker", ("app.tasks",))
    assert only.config.workers == only.settings.workers == 3


def test_options_of_taskiq_worker_mean_the_same_here(tmp_path: Path) -> None:
    asked = plan(
        *("app:broker", "more", "-d", str(tmp_path), "-fsd", "-tp", "a.py", "-tp", "b.py"),
        *("--log-level", "debug", "--log-format", "%(message)s", "--no-configure-logging"),
        *("--no-parse", "--no-propagate-errors", "--max-threadpool-threads", "4"),
        *("--use-process-pool", "--max-process-pool-processes", "2"),
        *("--shutdown-timeout", "1.5", "--max-async-tasks", "7"),
        *("--max-async-tasks-jitter", "3", "--max-prefetch", "5"),
        *("--ack-type", "WHEN_RECEIVED", "--receiver", "r:R"),
        *("--receiver_arg", "a=1", "--receiver_arg", "b=x=y"),
        *("--wait-tasks-timeout", "12", "--hardkill-count", "2"),
        *("--max-tasks-per-child", "50"),
        *("--reload", "--reload-dir", str(tmp_path), "--do-not-use-gitignore"),
    )
    config, settings = asked.pools[0].config, asked.pools[0].settings
    assert asked.name == config.instance == "app-broker"
    assert (config.modules, config.app_dir, config.fs_discover) == (("more",), str(tmp_path), True)
    assert config.tasks_pattern == ("a.py", "b.py")
    assert (config.log_level, config.log_format) == ("DEBUG", "%(message)s")
    assert (asked.log_level, asked.log_format, asked.log_style) == ("DEBUG", "%(message)s", "text")
    assert (config.configure_logging, config.no_parse, config.no_propagate_errors) == (
        False,
        True,
        True,
    )
    assert (config.max_threadpool_threads, config.use_process_pool) == (4, True)
    assert (config.max_process_pool_processes, config.shutdown_timeout) == (2, 1.5)
    assert (config.max_async_tasks, config.max_async_tasks_jitter) == (7, 3)
    assert (config.max_prefetch, config.ack_type, config.receiver) == (5, "when_received", "r:R")
    assert config.receiver_arg == (("a", "1"), ("b", "x=y"))
    assert (settings.graceful_timeout, settings.hardkill_count) == (12, 2)
    assert settings.stop_timeout > config.shutdown_timeout
    assert settings.max_tasks == 50
    assert asked.watch == Watch((tmp_path,), gitignore=False)


def test_the_defaults_are_those_of_taskiq_worker() -> None:
    from taskiq.cli.worker.args import WorkerArgs

    theirs = WorkerArgs(broker="app:broker", modules=[])
    ours, settings = pool().config, pool().settings
    assert ours.tasks_pattern == tuple(theirs.tasks_pattern)
    for name in (
        *("app_dir", "fs_discover", "configure_logging", "log_format", "workers"),
        *("max_threadpool_threads", "max_process_pool_processes", "no_parse", "shutdown_timeout"),
        *("max_async_tasks", "max_async_tasks_jitter", "receiver", "max_prefetch"),
        *("no_propagate_errors", "use_process_pool"),
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.ack_type, ours.log_level) == (theirs.ack_type.value, theirs.log_level.name)
    assert (settings.hardkill_count, settings.max_tasks) == (
        theirs.hardkill_count,
        theirs.max_tasks_per_child,
    )
    assert plan("app:broker").watch is None


def test_every_option_of_taskiq_worker_is_taken() -> None:
    from taskiq.cli.worker.args import WorkerArgs

    parsers: list[ArgumentParser] = []

    def stop(parser: ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        parsers.append(parser)
        raise KeyboardInterrupt

    with patch.object(ArgumentParser, "parse_args", stop), pytest.raises(KeyboardInterrupt):
        WorkerArgs.from_cli(["app:broker"])
    theirs = {name for action in parsers[0]._actions for name in action.option_strings}
    ours = {name for parameter in cli.commands["run"].params for name in parameter.opts}
    assert len(theirs) > 20
    assert theirs - ours == {"-h", "--help"}


def test_the_options_of_our_own_go_where_they_are_needed() -> None:
    asked = pool(
        *("--boot-timeout", "2m", "--hang-warn", "5s", "--hang-timeout", "1m30s"),
        *("--task-timeout", "1h", "--nice", "5", "--pin", "--log-style", "json"),
        *("--max-memory", "1.5G", "--max-lifetime", "12h", "--recycle-jitter", "0.25"),
        *("--max-tasks-per-worker", "9", "--max-deliveries", "1", "--no-preload"),
    )
    config, settings = asked.config, asked.settings
    assert (settings.boot_timeout, settings.hang_warn, settings.hang_timeout) == (120, 5, 90)
    assert (config.task_timeout, config.nice, config.pin, config.log_style) == (
        3600,
        5,
        True,
        "json",
    )
    assert (settings.max_memory, settings.max_lifetime) == (3 << 29, 12 * 3600)
    assert (settings.recycle_jitter, settings.max_tasks, asked.max_deliveries) == (0.25, 9, 1)
    assert (config.preload, settings.preload) == (False, False)


@pytest.mark.parametrize(
    ("arguments", "single", "transport"),
    [
        ((), None, "shm"),
        (("--single-listener", "--transport", "zmq"), True, "zmq"),
        (("--no-single-listener",), False, "shm"),
    ],
)
def test_whether_one_process_listens_for_all_is_said_or_left_to_the_broker(
    arguments: tuple[str, ...], single: bool | None, transport: str
) -> None:
    config = pool(*arguments).config
    assert (config.single_listener, config.transport) == (single, transport)


def test_zero_turns_a_limit_off() -> None:
    limits = ("boot-timeout", "hang-warn", "hang-timeout", "task-timeout", "max-memory")
    asked = pool(
        *(f"--{limit}=0" for limit in (*limits, "max-lifetime", "max-tasks-per-worker")),
        *("--max-workers=0", "--min-workers=2"),
    )
    settings = asked.settings
    assert asked.config.task_timeout is None
    assert (settings.boot_timeout, settings.hang_warn, settings.hang_timeout) == (None, None, None)
    assert (settings.max_memory, settings.max_lifetime, settings.max_tasks) == (None, None, None)
    assert (settings.min_workers, settings.max_workers) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ((), (2, None, None)),
        (("-w4",), (4, None, None)),
        (("-w4", "--min-workers", "1"), (4, 1, 4)),
        (("-w4", "--max-workers", "8"), (4, 4, 8)),
        (("--max-workers", "8"), (2, 2, 8)),
        (("--max-workers", "1"), (1, 1, 1)),
        (("--min-workers", "4", "--max-workers", "8"), (4, 4, 8)),
        (("--min-workers", "1", "--max-workers", "8"), (2, 1, 8)),
        (("--min-workers", "1", "-w6", "--max-workers", "8"), (6, 1, 8)),
    ],
    ids=lambda case: " ".join(map(str, case)),
)
def test_how_many_workers_there_may_be(
    arguments: tuple[str, ...], sizes: tuple[int, int | None, int | None]
) -> None:
    settings = pool(*arguments).settings
    assert (settings.workers, settings.min_workers, settings.max_workers) == sizes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90), ("0.5", 0.5), ("90s", 90), ("1.5m", 90), ("2H", 7200), ("1d", 86400)),
        *(("1h30m", 5400), (" 3s ", 3)),
    ],
)
def test_durations_are_seconds_or_have_units(text: str, seconds: float) -> None:
    assert pool("--graceful-timeout", text).settings.graceful_timeout == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("1000", 1000), ("500M", 500 << 20), ("500mb", 500 << 20), ("2GiB", 2 << 30)),
        *(("0.5K", 512), ("7B", 7), ("1 T", 1 << 40)),
    ],
)
def test_sizes_are_bytes_or_have_units(text: str, size: int) -> None:
    assert pool("--max-memory", text).settings.max_memory == size


def test_without_a_folder_the_current_one_and_the_applications_are_watched(
    workdir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (workdir / "inside").mkdir()
    outside = tmp_path_factory.mktemp("outside")
    for folder, watched in (("inside", (workdir,)), (str(outside), (workdir, outside))):
        assert plan("app:broker", "-r", "-d", folder).watch == Watch(watched, gitignore=True)
    assert plan("app:broker", "-r", "--reload-dir", "inside").watch == Watch(
        (workdir / "inside",), gitignore=True
    )


def test_every_option_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    run = cli.commands["run"]
    for parameter in run.params:
        if isinstance(parameter, click.Option):
            name = max(parameter.opts, key=len).lstrip("-").replace("-", "_").upper()
            assert f"TASKIQ_SUPERVISE_{name}" in (parameter.envvar or ())
    monkeypatch.setenv("TASKIQ_SUPERVISE_GRACEFUL_TIMEOUT", "3")
    monkeypatch.setenv("TASKIQ_SUPERVISE_NO_PRELOAD", "1")
    monkeypatch.setenv("TASKIQ_SUPERVISE_NO_CONFIGURE_LOGGING", "1")
    monkeypatch.setenv("TASKIQ_SUPERVISE_PIN", "0")
    monkeypatch.setenv("TASKIQ_SUPERVISE_TASKS_PATTERN", "a.py b.py")
    monkeypatch.setenv("TASKIQ_SUPERVISE_NAME", "named")
    asked = plan("app:broker")
    (only,) = asked.pools
    assert (only.settings.graceful_timeout, only.config.preload) == (3, False)
    assert (only.config.configure_logging, only.config.pin) == (False, False)
    assert (only.config.tasks_pattern, asked.name) == (("a.py", "b.py"), "named")

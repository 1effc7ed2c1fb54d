"""The command line, as far as it goes without an application."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import pytest
from click.testing import CliRunner

from taskiq_supervise.supervisor.cli import cli
from taskiq_supervise.supervisor.options import build

COMMAND = (sys.executable, "-m", "taskiq_supervise")


def call(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def parse(*arguments: str) -> dict[str, Any]:
    """What `run` would be called with."""
    values: dict[str, Any] = {}
    with patch.object(cli.commands["run"], "callback", values.update):
        cli.main(list(arguments), standalone_mode=False)
    return values


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "module:variable"),
        (("app",), "'app' is neither a command nor an application"),
        (("app:",), "module:variable"),
        ((":broker",), "module:variable"),
        (("run",), "module:broker"),
        (("app:broker", "--workers", "0"), "--workers"),
        (("app:broker", "--workers", "501"), "--workers"),
        (("app:broker", "-w", "two"), "'two'"),
        (("app:broker", "--graceful-timeout", "-1"), "--graceful-timeout"),
        (("app:broker", "--graceful-timeout", "soon"), "'soon'"),
        (("app:broker", "--graceful-timeout", "nan"), "'nan' is not a finite number"),
        (("app:broker", "--graceful-timeout", "inf"), "'inf' is not a finite number"),
        (("app:broker", "--shutdown-timeout", "nan"), "--shutdown-timeout"),
        (("app:broker", "--shutdown-timeout", "Infinity"), "'Infinity' is not a finite"),
        (("app:broker", "--log-format", "%d"), "'%d' is no format"),
        (("app:broker", "--log-format", "{message}"), "--log-format"),
        (("app:broker", "--log-format", "%(message)s %d"), "'%(message)s %d' is no format"),
        (("app:broker", "--log-format", "%(message)d"), "--log-format"),
        (("app:broker", "--log-format", "%(bogus)s"), "'bogus'"),
        (("app:broker", "--max-deliveries", "0"), "--max-deliveries"),
        (("app:broker", "--max-prefetch", "-1"), "--max-prefetch"),
        (("app:broker", "--hardkill-count", "0"), "--hardkill-count"),
        (("app:broker", "--ack-type", "never"), "--ack-type"),
        (("app:broker", "--log-level", "loud"), "--log-level"),
        (("app:broker", "--app-dir", "/nowhere"), "/nowhere"),
        (("app:broker", "--name", "a/b"), "'a/b'"),
        (("app:broker", "--receiver_arg", "x"), "'x' is not written as key=value"),
        (("app:broker", "--no-such-option"), "--no-such-option"),
        (("app:broker", "--reload"), "--reload"),
        (("status", "one", "two"), "two"),
        (("status", "../x"), "'../x'"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2_and_says_what_is_wrong(
    arguments: tuple[str, ...], said: str
) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_wrong_usage_is_status_2_for_the_shell_as_well() -> None:
    done = call("app:broker", "--workers", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "0 is not in the range" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_value_in_the_environment_is_wrong_usage_too() -> None:
    done = CliRunner().invoke(cli, ["app:broker"], env={"TASKIQ_SUPERVISE_WORKERS": "0"})
    assert done.exit_code == 2
    assert "--workers" in done.output


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
    values = parse(*arguments)
    assert (values["app"], values["modules"], values["workers"]) == (
        "app:broker",
        ("app.tasks",),
        3,
    )


def test_options_of_taskiq_worker_mean_the_same_here(tmp_path: Path) -> None:
    run, name = build(
        parse(
            *("app:broker", "more", "-d", str(tmp_path), "-fsd", "-tp", "a.py", "-tp", "b.py"),
            *("--log-level", "debug", "--log-format", "%(message)s", "--no-configure-logging"),
            *("--no-parse", "--no-propagate-errors", "--max-threadpool-threads", "4"),
            *("--use-process-pool", "--max-process-pool-processes", "2"),
            *("--shutdown-timeout", "1.5", "--max-async-tasks", "7"),
            *("--max-async-tasks-jitter", "3", "--max-prefetch", "5"),
            *("--ack-type", "WHEN_RECEIVED", "--receiver", "r:R"),
            *("--receiver_arg", "a=1", "--receiver_arg", "b=x=y"),
            *("--wait-tasks-timeout", "12", "--hardkill-count", "2"),
        )
    )
    config, settings = run.config, run.settings
    assert name == "app-broker"
    assert (config.modules, config.app_dir, config.fs_discover) == (("more",), str(tmp_path), True)
    assert config.tasks_pattern == ("a.py", "b.py")
    assert (config.log_level, config.log_format) == ("DEBUG", "%(message)s")
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


def test_the_defaults_are_those_of_taskiq_worker() -> None:
    from taskiq.cli.worker.args import WorkerArgs

    theirs = WorkerArgs(broker="app:broker", modules=[])
    run, _ = build(parse("app:broker"))
    ours = run.config
    assert ours.tasks_pattern == tuple(theirs.tasks_pattern)
    for name in (
        *("app_dir", "fs_discover", "configure_logging", "log_format", "workers"),
        *("max_threadpool_threads", "max_process_pool_processes", "no_parse", "shutdown_timeout"),
        *("max_async_tasks", "max_async_tasks_jitter", "receiver", "max_prefetch"),
        *("no_propagate_errors", "use_process_pool"),
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.ack_type, ours.log_level) == (theirs.ack_type.value, theirs.log_level.name)
    assert run.settings.hardkill_count == theirs.hardkill_count


def test_every_option_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    run = cli.commands["run"]
    for parameter in run.params:
        if isinstance(parameter, click.Option):
            name = max(parameter.opts, key=len).lstrip("-").replace("-", "_").upper()
            assert f"TASKIQ_SUPERVISE_{name}" in (parameter.envvar or ())
    monkeypatch.setenv("TASKIQ_SUPERVISE_GRACEFUL_TIMEOUT", "3")
    monkeypatch.setenv("TASKIQ_SUPERVISE_NO_PRELOAD", "1")
    monkeypatch.setenv("TASKIQ_SUPERVISE_TASKS_PATTERN", "a.py b.py")
    monkeypatch.setenv("TASKIQ_SUPERVISE_NAME", "named")
    built, name = build(parse("app:broker"))
    assert (built.settings.graceful_timeout, built.config.preload) == (3, False)
    assert (built.config.tasks_pattern, name) == (("a.py", "b.py"), "named")


def test_help_tells_a_newcomer_how_to_begin() -> None:
    done = call("--help")
    assert done.returncode == 0
    for text in ("taskiq-supervise app:broker", "status", "--workers", "Stopping:", "Logging:"):
        assert text in done.stdout
    assert call("run", "--help").stdout.count("--graceful-timeout") == 1


def test_the_version_is_the_packages() -> None:
    assert re.fullmatch(r"taskiq-supervise, version \d+\.\d+\.\d+\n", call("--version").stdout)


def test_the_supervisor_imports_neither_taskiq_nor_what_only_people_need() -> None:
    code = (
        "import sys, taskiq_supervise.supervisor.shell, taskiq_supervise.supervisor.cli\n"
        "unwanted = {'taskiq', 'uvloop', 'rich', 'pydantic', 'psutil', 'zmq'}\n"
        "print(sorted(unwanted & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_runtime_directory_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = call("app:broker", TASKIQ_SUPERVISE_RUNTIME_DIR=str(tmp_path / "file" / "x"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "TASKIQ_SUPERVISE_RUNTIME_DIR" in done.stderr

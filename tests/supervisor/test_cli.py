"""The command line, as far as it goes without an application."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from taskiq_supervise.supervisor import shell
from taskiq_supervise.supervisor.commands.cli import cli
from taskiq_supervise.supervisor.watching import WatchError

COMMAND = (sys.executable, "-m", "taskiq_supervise")


def call(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "module:variable"),
        (("app",), "'app' is neither a command nor an application"),
        (("statsu",), "for example status"),
        (("-w", "2", "app"), "'app' is no application"),
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
        (("app:broker", "--max-memory", "much"), "'much' is neither bytes nor"),
        (("app:broker", "--max-memory", "-1"), "'-1' is neither bytes nor"),
        (("app:broker", "--max-memory", "9" * 400), "more than an address can say"),
        (("app:broker", "--max-lifetime", "9" * 400), "is not a finite number"),
        (("app:broker", "--max-lifetime", "1y"), "'1y' is neither seconds nor"),
        (("app:broker", "--max-lifetime", "1e300"), "'1e300' is not between"),
        (("app:broker", "--recycle-jitter", "1"), "--recycle-jitter"),
        (("app:broker", "--recycle-jitter", "nan"), "'nan' is not a number"),
        (("app:broker", "--nice", "20"), "--nice"),
        (("app:broker", "--log-style", "xml"), "--log-style"),
        (("app:broker", "--config", "/nowhere.toml"), "/nowhere.toml"),
        (("app:broker", "--min-workers", "3"), "min-workers needs max-workers"),
        (("app:broker", "--hang-warn", "1"), "give 2 s or more, or 0 for off"),
        (("app:broker", "--hang-timeout", "0.5"), "--hang-timeout is 0.5 s"),
        (("app:broker", "--min-workers", "4", "--max-workers", "3"), "min-workers is 4, more than"),
        (("app:broker", "-w5", "--max-workers", "4"), "workers is 5, more than max-workers"),
        (("app:broker", "-w1", "--min-workers", "2"), "workers is 1, less than min-workers"),
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
        "import sys, taskiq_supervise.supervisor.shell, taskiq_supervise.supervisor.commands.cli\n"
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


def test_a_limit_that_has_no_effect_here_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "x")
    for limit, said in (("3", 1), ("-1", 0)):
        done = call("app:broker", "--max-fails", limit, TASKIQ_SUPERVISE_RUNTIME_DIR=nowhere)
        assert done.stderr.count("--max-fails has no effect") == said


def test_folders_that_cannot_be_watched_are_one_line() -> None:
    with patch.object(shell, "supervise", side_effect=WatchError("no more watches")):
        done = CliRunner().invoke(cli, ["app:broker", "--reload"])
    assert (done.exit_code, done.stderr) == (1, "taskiq-supervise: no more watches\n")

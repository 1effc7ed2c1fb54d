"""Commands, run as a program runs them."""

import json
from typing import Any

from click.testing import CliRunner, Result

from taskiq_supervise.supervisor.cli import cli


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def as_json(*arguments: str) -> Any:
    """What it prints with --json; it has to succeed."""
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def message(task: str = "app:add", *args: Any, **kwargs: Any) -> bytes:
    """As taskiq writes it."""
    return json.dumps(
        {
            "task_id": "inside",
            "task_name": task,
            "labels": {"queue": "mail"},
            "labels_types": {},
            "args": args,
            "kwargs": kwargs,
        }
    ).encode()

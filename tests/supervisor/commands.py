"""Commands, run as a program runs them."""

import json
from typing import Any
from unittest.mock import patch

import click
from click.testing import CliRunner, Result

from taskiq_supervise.supervisor.commands.cli import cli, plan_for
from taskiq_supervise.supervisor.plan import Plan


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def plan(*arguments: str) -> Plan:
    """What would be started."""
    found: list[Plan] = []

    def note(**values: Any) -> None:
        found.append(plan_for(click.get_current_context(), values))

    with patch.object(cli.commands["run"], "callback", note):
        cli.main(list(arguments), standalone_mode=False)
    return found[0]


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

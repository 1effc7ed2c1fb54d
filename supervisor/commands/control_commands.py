"""`taskiq-supervise reload` and `scale`: what a running instance can be asked to change.

Both do no more than Client does. Where one instance runs, it is meant; where several do, the one to
change has to be named, since the wrong one would be changed as quickly.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from taskiq_supervise.supervisor.commands.failure import EXIT_NOT_RUNNING, leave
from taskiq_supervise.supervisor.commands.queue_visit import F, json_option
from taskiq_supervise.supervisor.core.model import EXIT_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq_supervise.supervisor.client import Client

_NUMBER = re.compile(r"[+-]?\d{1,6}")


def _instance_and_pool(command: F) -> F:
    name = click.argument("name", required=False)
    pool = click.option("--pool", metavar="POOL", help="Only this one of its pools.")
    return name(pool(command))


@click.command()
@click.option("--wait", is_flag=True, help="Until the new workers have taken over, or failed to.")
@_instance_and_pool
@json_option
def reload(wait: bool, name: str | None, pool: str | None, as_json: bool) -> None:
    """Replace all workers by new ones with the code that is there now.

    The new code is imported beside the old, one worker of it has to come up and stay up, then the
    others follow, each ready before an old one leaves. When the new code cannot be imported, or
    its workers don't come up, the old ones stay.

    NAME may be left out when one instance is running. Exit status with --wait: 0 the new workers
    have taken over, 1 the old ones stay, and why is on stderr; 3 no such instance is running.
    """
    client = _client(name)
    result = _ask(lambda: client.reload(wait=wait, pool=pool))
    failed = result["ok"] is False
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not failed:
        click.echo(f"{client.name}: {'reloaded' if wait else 'reloading'}")
    if failed:
        broken = [its for its in result["pools"] if its["ok"] is False]
        for its in broken:
            _explain(client.name, its)
        if not broken:
            _explain(client.name, {"name": "", "traceback": None, **result})
        sys.exit(EXIT_FAILED)


def _explain(instance: str, pool: dict[str, Any]) -> None:
    where = f"{instance}, pool {pool['name']}" if pool["name"] else instance
    click.echo(f"taskiq-supervise: {where}: not reloaded: {pool['message']}", err=True)
    if pool["traceback"]:
        click.echo(pool["traceback"].rstrip("\n"), err=True)


# -1 is a number here, and would be an option anywhere else.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("number", metavar="N")
@_instance_and_pool
@json_option
def scale(number: str, name: str | None, pool: str | None, as_json: bool) -> None:
    """Change the number of workers: to N, or by +N or -N.

    New ones start; those that leave finish their tasks first. It lasts until the instance stops.
    Where there are --min-workers and --max-workers, N has to be between them.

    NAME may be left out when one instance is running, POOL when it has one. Exit status: 0 done, 1
    refused, 3 no such instance is running.
    """
    if not _NUMBER.fullmatch(number):
        raise click.BadParameter(
            f"{number!r} is neither a number of workers nor a change as +1 or -1", param_hint="N"
        )
    change = number[0] in "+-"
    size = {"by": int(number)} if change else {"workers": int(number)}
    client = _client(name)
    result = _ask(lambda: client.scale(**size, pool=pool))
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        where = f"{client.name}, pool {result['pool']}" if result["pool"] else client.name
        click.echo(f"{where}: {result['before']} -> {result['workers']} workers")


def _client(name: str | None) -> Client:
    """The instance that is meant."""
    from taskiq_supervise.supervisor.client import Client, statuses
    from taskiq_supervise.supervisor.runtime import RuntimeDirectoryError, places

    if name is None:
        names = [str(instance["name"]) for instance in statuses()]
        if not names:
            leave(f"no instance is running (looked in {places()})", EXIT_NOT_RUNNING)
        if len(names) > 1:
            raise click.UsageError(f"say which instance; running: {', '.join(names)}")
        name = names[0]
    try:
        return Client(name)
    except RuntimeDirectoryError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None


def _ask(question: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    from taskiq_supervise.supervisor.client import ControlError, NotRunning

    try:
        return question()
    except NotRunning as error:
        leave(str(error), EXIT_NOT_RUNNING)
    except ControlError as error:
        leave(str(error), EXIT_FAILED)

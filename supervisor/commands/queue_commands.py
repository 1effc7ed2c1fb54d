"""`taskiq-supervise queue`: which queues there are, what is in them, how to empty or remove one.

All of it works without a supervisor. What cannot be undone is asked before it is done; where nobody
can be asked, --yes has to say so.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from taskiq_supervise.supervisor.commands.failure import leave
from taskiq_supervise.supervisor.commands.queue_visit import (
    base_directory,
    counted,
    directory_option,
    json_option,
    queue_argument,
    queue_names,
    visit,
)
from taskiq_supervise.supervisor.core.model import EXIT_FAILED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from taskiq_supervise.ipc import MessageState, MessageView, TaskQueue

_MESSAGES_SHOWN = 20
_NOUNS = {"waiting": "waiting message", "dead": "dead letter", "results": "result"}

yes_option = click.option("--yes", "-y", is_flag=True, help="Don't ask.")


@click.group()
def queue() -> None:
    """See, empty or remove queues in shared memory.

    \b
      taskiq-supervise queue list
      taskiq-supervise queue show demo
      taskiq-supervise queue purge demo --dead
      taskiq-supervise queue destroy demo

    No supervisor needs to run for that.
    """


@queue.command("list")
@directory_option
@json_option
def list_queues(directory: Path | None, as_json: bool) -> None:
    """List the queues, with what is in them and who uses them."""
    base = base_directory(directory)
    queues = [_facts(name, base) for name in queue_names(base)]
    if as_json:
        click.echo(json.dumps({"queues": queues}, indent=2))
    elif queues:
        from taskiq_supervise.supervisor.commands.queue_render import console, show_queues

        show_queues(queues, console())
    else:
        click.echo(f"no queues in {base}", err=True)


@queue.command()
@queue_argument
@click.option("--all", "everything", is_flag=True, help="All messages, not only the oldest.")
@directory_option
@json_option
def show(queue: str, everything: bool, directory: Path | None, as_json: bool) -> None:
    """Show one queue: its room, its participants, and the messages that wait or run."""
    from taskiq_supervise.ipc import MessageState
    from taskiq_supervise.supervisor.commands.queue_facts import message_facts, queue_facts, read

    ended = {MessageState.DONE, MessageState.DEAD}
    with visit(queue, directory) as opened:
        facts = queue_facts(opened, _others(opened))
        views = list(opened.messages(set(MessageState) - ended))
        shown = views if everything or as_json else views[:_MESSAGES_SHOWN]
        contents = [(view, read(opened, view)[0]) for view in shown]
    messages = [message_facts(view, text) for view, text in contents]
    if as_json:
        click.echo(json.dumps({**facts, "messages": messages}, indent=2))
        return
    from taskiq_supervise.supervisor.commands.queue_render import console, show_queue

    show_queue(facts, messages, len(views) - len(shown), time.time(), console())


@queue.command()
@queue_argument
@click.option("--waiting", is_flag=True, help="Messages that wait, delayed ones too (the default).")
@click.option("--dead", is_flag=True, help="Dead letters, instead or as well.")
@click.option("--results", is_flag=True, help="Results that are kept, instead or as well.")
@yes_option
@directory_option
@json_option
def purge(
    queue: str,
    waiting: bool,
    dead: bool,
    results: bool,
    yes: bool,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Empty a queue of the messages that wait to be run.

    Who waits for their results gets an error that says so. What is being run is not touched.
    """
    from taskiq_supervise.ipc import MessageState

    waiting = waiting or not (dead or results)
    _check_asking(yes)
    with visit(queue, directory) as opened:
        stats = opened.stats()
    doomed = {}
    if waiting:
        doomed["waiting"] = stats.ready + stats.delayed
    if dead:
        doomed["dead"] = stats.dead
    if results:
        doomed["results"] = stats.done
    _ask(f"Forget {_told(doomed)} of queue {queue!r}?", yes)
    purged = {}
    with visit(queue, directory) as opened:
        if results:  # first, so that who waits still learns what is discarded below
            purged["results"] = _drop(opened, {MessageState.DONE})
        if dead:
            purged["dead"] = _drop(opened, {MessageState.DEAD})
        if waiting:
            purged["waiting"] = _discard(opened)
    if as_json:
        click.echo(json.dumps({"purged": {kind: purged.get(kind, 0) for kind in _NOUNS}}, indent=2))
    else:
        click.echo(f"purged {_told(purged)}")


@queue.command()
@queue_argument
@yes_option
@directory_option
@json_option
def destroy(queue: str, yes: bool, directory: Path | None, as_json: bool) -> None:
    """Remove a queue with everything in it, and free its memory.

    Refused while a process uses it. A queue that is damaged, or of another version, is removed too.
    """
    from taskiq_supervise.ipc import QueueError
    from taskiq_supervise.ipc.removal import destroy_queue

    folder = base_directory(directory) / queue
    _check_asking(yes)
    if not yes:
        _ask(f"Remove queue {queue!r} with {_contents(queue, folder.parent)}?", yes)
    try:
        destroy_queue(folder)
    except QueueError as error:
        leave(str(error), EXIT_FAILED)
    if as_json:
        click.echo(json.dumps({"destroyed": queue}, indent=2))
    else:
        click.echo(f"removed queue {queue!r}")


def _facts(name: str, base: Path) -> dict[str, Any]:
    from taskiq_supervise.ipc import QueueError, TaskQueue
    from taskiq_supervise.supervisor.commands.queue_facts import queue_facts, unreadable_facts

    try:
        with TaskQueue.open(name, base, create=False, mode=None) as opened:
            return queue_facts(opened, _others(opened))
    except QueueError as error:
        return unreadable_facts(name, base, str(error))


def _others(opened: TaskQueue) -> list[Any]:
    """Those who live in the queue, without this visit."""
    from taskiq_supervise.ipc.presence import living_in

    found = living_in(opened.directory, opened.participants())
    return [one for one in found if one.index != opened.participant]


def _contents(name: str, base: Path) -> str:
    from taskiq_supervise.ipc import QueueError, QueueMissing, TaskQueue

    try:
        with TaskQueue.open(name, base, create=False, mode=None) as opened:
            stats = opened.stats()
    except QueueMissing as error:
        leave(str(error), EXIT_FAILED)
    except QueueError as error:
        return f"contents that cannot be read ({error})"
    alive = stats.ready + stats.delayed + stats.leased + stats.running
    messages, results = counted(alive, "message"), counted(stats.done, "result")
    return f"{messages}, {counted(stats.dead, 'dead letter')} and {results}"


def _drop(opened: TaskQueue, states: set[MessageState]) -> int:
    from taskiq_supervise.ipc import UnknownTask

    dropped = 0
    for view in _now(opened, states):
        try:
            opened.drop(view.ticket)
            dropped += 1
        except UnknownTask:  # it expired, or somebody else dropped it
            continue
    return dropped


def _discard(opened: TaskQueue) -> int:
    from taskiq_supervise.ipc import MessageState

    waiting = _now(opened, {MessageState.READY, MessageState.DELAYED})
    return sum(opened.discard(view.ticket) for view in waiting)


def _now(opened: TaskQueue, states: set[MessageState]) -> Iterable[MessageView]:
    """What is there at this moment: what comes in meanwhile was not meant."""
    return list(opened.messages(states))


def _told(numbers: dict[str, int]) -> str:
    return ", ".join(counted(numbers[kind], _NOUNS[kind]) for kind in _NOUNS if kind in numbers)


def _check_asking(yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("this cannot be undone, and nobody can be asked here: say --yes")


def _ask(question: str, yes: bool) -> None:
    if not yes:
        click.confirm(question, abort=True, err=True)

"""`taskiq-supervise dead`: what could not be run, and what to do with it."""

from __future__ import annotations

import json
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from taskiq_supervise.ipc import DeadReason
from taskiq_supervise.supervisor.commands.failure import leave
from taskiq_supervise.supervisor.commands.queue_visit import (
    F,
    counted,
    directory_option,
    json_option,
    queue_argument,
    visit,
)
from taskiq_supervise.supervisor.core.model import EXIT_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from taskiq_supervise.ipc import MessageView, TaskQueue, Ticket
    from taskiq_supervise.supervisor.commands.message_text import MessageText

_CANDIDATES_NAMED = 4

Letters = list[tuple["MessageView", "MessageText", bytes]]


@click.group()
def dead() -> None:
    """See, run again or drop what could not be run (dead letters).

    A message becomes a dead letter when it cannot be parsed, names a task that no worker knows, or
    was started as often as it may be and took its worker with it each time. It is kept with the
    reason until it is dropped, or until newer ones need its room.

    \b
      taskiq-supervise dead list demo
      taskiq-supervise dead show demo 3f2a91c0
      taskiq-supervise dead requeue demo --all --task 'app.mail:*'

    An ID may be abbreviated to what tells it from the others.
    """


def _filters(command: F) -> F:
    task = click.option(
        "--task", metavar="NAME", help="Only those of this task; * and ? stand for any text."
    )
    reason = click.option(
        "--reason",
        "reasons",
        type=click.Choice([one.name.lower().replace("_", "-") for one in DeadReason]),
        multiple=True,
        help="Only those that died of this. May be repeated.",
    )
    return task(reason(command))


def _selection(command: F) -> F:
    ids = click.argument("ids", metavar="[ID]...", nargs=-1)
    everything = click.option("--all", "everything", is_flag=True, help="All, instead of IDs.")
    return queue_argument(ids(everything(_filters(command))))


@dead.command("list")
@queue_argument
@_filters
@directory_option
@json_option
def list_letters(
    queue: str, task: str | None, reasons: tuple[str, ...], directory: Path | None, as_json: bool
) -> None:
    """List the dead letters of QUEUE, oldest first."""
    from taskiq_supervise.supervisor.commands.queue_facts import message_facts

    with visit(queue, directory) as opened:
        letters = [message_facts(view, text) for view, text, _ in _matching(opened, task, reasons)]
    if as_json:
        click.echo(json.dumps({"dead": letters}, indent=2))
    elif letters:
        from taskiq_supervise.supervisor.commands.queue_render import console, show_dead_letters

        show_dead_letters(letters, time.time(), console())
    else:
        click.echo(f"no dead letters{_narrowed(task, reasons)} in queue {queue!r}", err=True)


@dead.command()
@queue_argument
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@directory_option
@json_option
def show(queue: str, ids: tuple[str, ...], directory: Path | None, as_json: bool) -> None:
    """Show why dead letters of QUEUE died, and what they say.

    Arguments are shortened; --json has them in full where they are JSON. Nothing is ever unpickled.
    """
    from taskiq_supervise.supervisor.commands.queue_facts import content_facts, message_facts

    with visit(queue, directory) as opened:
        letters = _named(opened, ids)
    if as_json:
        facts = [
            {**message_facts(view, text), **content_facts(text, payload)}
            for view, text, payload in letters
        ]
        click.echo(json.dumps({"dead": facts}, indent=2))
        return
    from taskiq_supervise.supervisor.commands.queue_render import console, show_letter

    out = console()
    for number, (view, text, _) in enumerate(letters):
        if number:
            out.print()
        show_letter(message_facts(view, text), text, time.time(), out)


@dead.command()
@_selection
@directory_option
@json_option
def requeue(**values: Any) -> None:
    """Run dead letters of QUEUE again.

    They keep their ids, and their starts are counted from 0. Say which: IDs, or --all, which --task
    and --reason narrow.
    """
    _each(**values, what="requeued", act=lambda queue, ticket: queue.requeue(ticket))


@dead.command()
@_selection
@directory_option
@json_option
def drop(**values: Any) -> None:
    """Forget dead letters of QUEUE for good.

    Say which: IDs, or --all, which --task and --reason narrow.
    """
    _each(**values, what="dropped", act=lambda queue, ticket: queue.drop(ticket))


def _each(
    queue: str,
    ids: tuple[str, ...],
    everything: bool,
    task: str | None,
    reasons: tuple[str, ...],
    directory: Path | None,
    as_json: bool,
    what: str,
    act: Callable[[TaskQueue, Ticket], object],
) -> None:
    """Do it to each that is meant. One that somebody else took meanwhile is said, and no failure
    with --all: then it is done."""
    from taskiq_supervise.ipc import QueueFull, UnknownTask

    if bool(ids) == everything:
        raise click.UsageError("say which dead letters: IDs, or --all")
    if ids and (task is not None or reasons):
        raise click.UsageError("--task and --reason narrow --all; they do not go with IDs")
    done: list[str] = []
    gone: list[str] = []
    problem = None
    with visit(queue, directory) as opened:
        letters = _matching(opened, task, reasons) if everything else _named(opened, ids)
        for view, _, _ in letters:
            try:
                act(opened, view.ticket)
                done.append(view.ticket.task_id)
            except UnknownTask:
                gone.append(view.ticket.task_id)
            except QueueFull as error:
                problem = f"{what} {len(done)} of {counted(len(letters), 'dead letter')}: {error}"
                break
    if as_json:
        click.echo(json.dumps({what: done, "gone": gone}, indent=2))
    elif problem is None:
        click.echo(f"{what} {counted(len(done), 'dead letter')}")
    if problem is None and gone and not everything:
        problem = f"no longer there, or not readable: {', '.join(gone)}"
    if problem is not None:
        leave(problem, EXIT_FAILED)


def _matching(queue: TaskQueue, task: str | None, reasons: Iterable[str]) -> Letters:
    from taskiq_supervise.ipc import MessageState
    from taskiq_supervise.supervisor.commands.queue_facts import reason_name

    wanted = set(reasons)
    views = [
        view
        for view in queue.messages({MessageState.DEAD})
        if not wanted or (view.dead_reason is not None and reason_name(view.dead_reason) in wanted)
    ]
    return [
        letter
        for letter in _read(queue, views)
        if task is None or (letter[1].task_name and fnmatchcase(letter[1].task_name, task))
    ]


def _named(queue: TaskQueue, ids: Iterable[str]) -> Letters:
    """The dead letters with these ids or beginnings of ids; each once, in the order given."""
    from taskiq_supervise.ipc import MessageState

    views = list(queue.messages({MessageState.DEAD}))
    known = {view.ticket.task_id for view in views}
    wanted = dict.fromkeys(_whole(given, known, queue.name) for given in ids)
    return _read(queue, [view for one in wanted for view in views if view.ticket.task_id == one])


def _read(queue: TaskQueue, views: Iterable[MessageView]) -> Letters:
    from taskiq_supervise.supervisor.commands.queue_facts import read

    return [(view, *read(queue, view)) for view in views]


def _whole(given: str, known: set[str], queue: str) -> str:
    if given in known:
        return given
    fitting = sorted(one for one in known if given and one.startswith(given))
    if not fitting:
        leave(f"no dead letter {given!r} in queue {queue!r}", EXIT_FAILED)
    if len(fitting) > 1:
        named = ", ".join(fitting[:_CANDIDATES_NAMED])
        more = ", …" if len(fitting) > _CANDIDATES_NAMED else ""
        leave(f"{given!r} is the beginning of {len(fitting)} ids: {named}{more}", EXIT_FAILED)
    return fitting[0]


def _narrowed(task: str | None, reasons: tuple[str, ...]) -> str:
    return " that fit" if task is not None or reasons else ""

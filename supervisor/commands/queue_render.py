"""Queues and dead letters for people: aligned lines, made for a terminal or for a pipe.

On a terminal ids are cut to what tells them apart, which every command takes, and tasks' names to
what fits; into a pipe nothing is cut or coloured. What comes out of messages is shown with its
control characters escaped: a task id must not move the reader's cursor.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

from taskiq_supervise.supervisor.commands.message_text import short_arguments, short_labels
from taskiq_supervise.supervisor.commands.queue_visit import counted
from taskiq_supervise.supervisor.commands.render import duration, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from taskiq_supervise.supervisor.commands.message_text import MessageText

_RIGHT = {
    *("ATTEMPTS", "SIZE", "READY", "DELAYED", "RUNNING", "DEAD", "RESULTS", "ROOM", "WORKERS"),
    *("CLIENTS", "PRIO"),
}
_UNLIMITED = 100_000
"""Columns of an output that is not a terminal."""

_SHORTEST_NAME = 16
"""Where less than this is left for the name of a task, the lines are longer than the terminal."""

_SHORTEST_ID = 8
_LABEL_WIDTH = 10


def console() -> Console:
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=_UNLIMITED)


def printable(value: object) -> str:
    """Text as it is, but for what would not be seen as such on a terminal."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in str(value)
    )


def moment(when: float) -> str:
    """Local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def short_moment(when: float | None, now: float, out: Console) -> str:
    """On a terminal, of today only the time, and of other days not the seconds."""
    if when is None:
        return "-"
    if not out.is_terminal:
        return moment(when)
    then, today = time.localtime(when), time.localtime(now)
    is_today = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M", then)


def shortest_ids(ids: Iterable[str]) -> dict[str, str]:
    """What is enough of each id to tell it from the others."""
    ordered = sorted(set(ids))
    short = {}
    for position, one in enumerate(ordered):
        neighbours = ordered[max(0, position - 1) : position] + ordered[position + 1 : position + 2]
        length = max([_SHORTEST_ID, *(_common(one, other) + 1 for other in neighbours)])
        short[one] = one[:length]
    return short


def _common(one: str, other: str) -> int:
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def show_queues(queues: Sequence[Mapping[str, Any]], out: Console) -> None:
    rows = []
    for queue in queues:
        counts = queue["counts"]
        if counts is None:
            continue
        roles = [one["role"] for one in queue["participants"]]
        rows.append(
            [
                queue["name"],
                *(counts["ready"], counts["delayed"], counts["leased"] + counts["running"]),
                *(counts["dead"], counts["done"], counts["capacity"]),
                *(roles.count("worker"), roles.count("client"), size(queue["size"])),
            ]
        )
    titles = ["QUEUE", "READY", "DELAYED", "RUNNING", "DEAD", "RESULTS", "ROOM"]
    if rows:
        _print_table(out, [*titles, "WORKERS", "CLIENTS", "SIZE"], rows)
    for queue in queues:
        if queue["error"] is not None:
            problem = escape(printable(f"{queue['name']} cannot be opened: {queue['error']}"))
            out.print(f"[red]{problem}[/]", soft_wrap=True)


def show_dead_letters(letters: Sequence[Mapping[str, Any]], now: float, out: Console) -> None:
    """now: Unix seconds."""
    ids = _ids(letters, out)
    rows = [
        [
            short_moment(letter["ended"], now, out),
            ids[letter["id"]],
            letter["task"] or "-",
            letter["reason"],
            letter["attempts"],
            worker(letter),
            size(letter["size"]),
        ]
        for letter in letters
    ]
    _print_table(out, ["WHEN", "ID", "TASK", "REASON", "ATTEMPTS", "WORKER", "SIZE"], rows)


def show_messages(messages: Sequence[Mapping[str, Any]], now: float, out: Console) -> None:
    """now: Unix seconds."""
    ids = _ids(messages, out)
    rows = [
        [
            short_moment(message["created"], now, out),
            ids[message["id"]],
            message["task"] or "-",
            _state(message, now),
            message["attempts"],
            worker(message),
            message["priority"],
            size(message["size"]),
        ]
        for message in messages
    ]
    titles = ["SENT", "ID", "TASK", "STATE", "ATTEMPTS", "WORKER", "PRIO", "SIZE"]
    _print_table(out, titles, rows)


def _state(message: Mapping[str, Any], now: float) -> str:
    """A delayed one with the time that is left."""
    if message["state"] != "delayed" or message["due"] is None:
        return str(message["state"])
    return f"in {duration(max(0.0, message['due'] - now))}"


def show_queue(
    queue: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    more: int,
    now: float,
    out: Console,
) -> None:
    """more: how many messages there are beyond those given. now: Unix seconds."""
    counts = queue["counts"]
    _print_fact(out, "queue", queue["name"])
    _print_fact(out, "directory", queue["directory"])
    states = ("ready", "delayed", "leased", "running", "dead")
    told = ", ".join(f"{counts[state]} {state}" for state in states)
    _print_fact(out, "messages", f"{told}; {counted(counts['done'], 'result')}")
    _print_fact(out, "room", f"{counts['free']} of {counts['capacity']} free")
    _print_fact(out, "size", size(queue["size"]))
    ttl = queue["result_ttl"]
    kept = f"for {duration(ttl)}" if ttl else "until their room is needed"
    _print_fact(out, "results", f"kept {kept}")
    for one in queue["participants"]:
        number = "" if one["worker"] is None else f" {one['worker']}"
        _print_fact(out, f"{one['role']}{number}", f"pid {one['pid']}")
    if messages:
        out.print()
        show_messages(messages, now, out)
    if more:
        out.print(f"and {more} more: --all shows them, --json too")


def show_letter(facts: Mapping[str, Any], text: MessageText, now: float, out: Console) -> None:
    """now: Unix seconds."""
    ago = "" if facts["ended"] is None else f" ({duration(max(0.0, now - facts['ended']))} ago)"
    limit = "" if facts["max_deliveries"] is None else f" of {facts['max_deliveries']}"
    detail = f": {facts['detail']}" if facts["detail"] else ""
    lines: list[tuple[str, str | None]] = [
        ("id", facts["id"]),
        ("task", facts["task"] or "-"),
        ("reason", f"{facts['reason']}{detail}"),
        ("attempts", f"{facts['attempts']}{limit}"),
        ("worker", worker(facts)),
        ("sent", moment(facts["created"])),
        ("due", None if facts["due"] is None else moment(facts["due"])),
        ("expires", None if facts["expires"] is None else moment(facts["expires"])),
        ("died", moment(facts["ended"]) + ago),
        ("priority", str(facts["priority"])),
        ("size", size(facts["size"])),
        ("labels", short_labels(text)),
        ("arguments", short_arguments(text)),
        ("payload", None if text.preview is None else f"{text.format}: {text.preview}"),
    ]
    for name, value in lines:
        if value:
            _print_fact(out, name, value)


def worker(facts: Mapping[str, Any]) -> str:
    """0 (pid 1234), or as much of it as is known."""
    pid = "" if facts["worker_pid"] is None else f"pid {facts['worker_pid']}"
    if facts["worker"] is None:
        return pid or "-"
    return f"{facts['worker']} ({pid})" if pid else str(facts["worker"])


def _ids(messages: Sequence[Mapping[str, Any]], out: Console) -> Mapping[str, str]:
    ids = [message["id"] for message in messages]
    return shortest_ids(ids) if out.is_terminal else {one: one for one in ids}


def _print_fact(out: Console, name: str, value: object) -> None:
    """Wrapped by the terminal, if need be, so that it can be copied in one piece."""
    out.print(f"[bold]{name:<{_LABEL_WIDTH}}[/] {escape(printable(value))}", soft_wrap=True)


def _print_table(out: Console, titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    lines = [[printable(value) for value in row] for row in rows]
    if out.is_terminal and "TASK" in titles:
        _fit(lines, titles, out.width)
    widths = _widths(lines, titles)
    for number, line in enumerate([titles, *lines]):
        cells = (
            _padded(value, width, title in _RIGHT)
            for value, width, title in zip(line, widths, titles, strict=True)
        )
        style = None if number else "bold"
        out.print("  ".join(cells).rstrip(), style=style, markup=False, soft_wrap=True)


def _padded(value: str, width: int, is_right: bool) -> str:
    padding = " " * (width - cell_len(value))
    return padding + value if is_right else value + padding


def _widths(lines: Sequence[Sequence[str]], titles: Sequence[str]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(titles, *lines, strict=True)]


def _fit(lines: list[list[str]], titles: Sequence[str], width: int) -> None:
    """Of a long name of a task the end is shown: modules are known, and functions differ."""
    column = titles.index("TASK")
    longest = max((cell_len(line[column]) for line in lines), default=0)
    others = sum(_widths(lines, titles)) + 2 * (len(titles) - 1) - longest
    room = width - others
    for line in lines:
        name = line[column]
        if cell_len(name) > room >= _SHORTEST_NAME:
            line[column] = "…" + name[1 - room :]

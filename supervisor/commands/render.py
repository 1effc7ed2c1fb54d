"""`status` for people: a line about each instance, and a table of its workers.

Only commands for people import this and queue_render, the two modules that import rich.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLOURS = {
    "ready": "green",
    "running": "green",
    "starting": "yellow",
    "forking": "yellow",
    "booting": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "killing": "red",
    "backoff": "red",
    "quarantined": "red",
    "unresponsive": "red",
    "hung": "red",
    "stopped": "red",
}
# Enough to see what a worker is at; `--json` has all of them.
_TASKS_SHOWN = 5
_NARROW = {"WORKER", "GEN", "PID", "UP", "DONE", "FAILED", "CPU", "RSS", "RESTARTS"}


def show(instances: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    out = console or Console(highlight=False)
    for number, instance in enumerate(instances):
        if number:
            out.print()
        _show_instance(out, instance)


def _show_instance(out: Console, instance: Mapping[str, Any]) -> None:
    facts = [f"pid {instance['pid']}"]
    pools = instance["pools"]
    if len(pools) == 1:
        facts.insert(0, str(pools[0]["app"]))
    if instance["uptime"] is not None:
        facts.append(f"up {duration(instance['uptime'])}")
    title = f"[bold]{escape(instance['name'])}[/] {_coloured(str(instance['state']))}"
    out.print(f"{title}  {escape(', '.join(facts))}", soft_wrap=True)
    if instance.get("message") and not any(pool["message"] for pool in pools):
        out.print(f"[red]{escape(str(instance['message']))}[/]", soft_wrap=True)
    for pool in pools:
        _show_pool(out, pool)
        workers = [worker for worker in instance["workers"] if worker["pool"] == pool["name"]]
        if workers or pool["listener"]:
            out.print(_processes(pool["listener"], workers))
            _show_running(out, workers)


def _show_pool(out: Console, pool: Mapping[str, Any]) -> None:
    if pool["name"]:
        title = f"[bold]{escape(pool['name'])}[/] {_coloured(str(pool['state']))}"
        out.print(f"{title}  {escape(str(pool['app']))}", soft_wrap=True)
    if pool["message"]:
        out.print(f"[red]{escape(str(pool['message']))}[/]", soft_wrap=True)
    facts = []
    if pool["transport"] is not None:
        facts.append(f"transport {pool['transport']}")
    if pool["min_workers"] is not None:
        facts.append(f"{pool['min_workers']} to {pool['max_workers']} workers")
    if pool["reload"] is not None:
        facts.append(f"reload: {pool['reload']}")
    if facts:
        out.print(escape(", ".join(facts)), soft_wrap=True)
    if pool["listener"] is not None:
        listener = pool["listener"]
        where = ", ".join(listener["endpoints"]) or listener["broker"]
        out.print(escape(f"listener: {where}, {listener['received']} received"), soft_wrap=True)
    if pool["queue"] is not None:
        queue = pool["queue"]
        counts = ", ".join(f"{queue[key]} {key}" for key in ("ready", "leased", "delayed", "dead"))
        out.print(f"queue: {counts}; room for {queue['capacity']}", soft_wrap=True)


def _processes(listener: Mapping[str, Any] | None, workers: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("WORKER", "GEN", "PID", "STATE", "UP", "DONE", "FAILED", "CPU", "RSS", "RESTARTS")
    for title in titles:
        table.add_column(title, justify="right" if title in _NARROW else "left", no_wrap=True)
    table.add_column("LAST EXIT")
    if listener is not None:
        table.add_row("listener", *_row(listener, "-", "-"))
    for worker in workers:
        tasks = worker["tasks"]
        row = _row(worker, str(tasks["done"]), str(tasks["failed"]))
        table.add_row(str(worker["slot"]), *row)
    return table


def _row(process: Mapping[str, Any], done: str, failed: str) -> tuple[str, ...]:
    return (
        str(process["generation"]),
        _or_dash(process["pid"]),
        _state(process),
        "-" if process["uptime"] is None else duration(process["uptime"]),
        done,
        failed,
        "-" if process["cpu_percent"] is None else f"{process['cpu_percent']:.0f}%",
        "-" if process["rss_bytes"] is None else size(process["rss_bytes"]),
        str(process["restarts"]),
        escape(_or_dash(process["last_exit"])),
    )


def _state(worker: Mapping[str, Any]) -> str:
    """What is said first is what is wrong: a worker that hangs counts as ready."""
    if worker["health"] in {"hung", "stopped"}:
        return _coloured(str(worker["health"]))
    return _coloured(str(worker["state"]))


def _show_running(out: Console, workers: Sequence[Mapping[str, Any]]) -> None:
    """What each worker does, the longest first."""
    for worker in workers:
        tasks = sorted(worker["running"], key=lambda task: -float(task["elapsed"]))
        for task in tasks[:_TASKS_SHOWN]:
            again = f", attempt {task['attempt']}" if task["attempt"] > 1 else ""
            line = f"{task['task_name']} for {duration(task['elapsed'])}{again}, {task['task_id']}"
            out.print(f"worker {worker['slot']} runs {escape(line)}", soft_wrap=True)
        if len(tasks) > _TASKS_SHOWN:
            out.print(f"worker {worker['slot']} runs {len(tasks) - _TASKS_SHOWN} more")


def duration(seconds: float) -> str:
    """Two units at most: 4.2s, 3m12s, 5h02m, 12d03h."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"


def size(count: int) -> str:
    """In powers of 1024: 512B, 34M, 1.2G."""
    value = float(count)
    for unit in ("B", "K", "M"):
        if value < 1024:
            return f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.1f}G"


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)

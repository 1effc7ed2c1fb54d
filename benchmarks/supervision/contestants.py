"""The contestants: how each is started, what it says when a worker is READY, who gives it work.

Each with as many workers, the same imports and the same work; whatever else is its default.
"""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from benchmarks.process import ROOT, Running, environment, places
from benchmarks.supervision.clients import CeleryClient, Client, HttpClient, TaskiqClient
from benchmarks.supervision.weight import MODULES, SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

WORKERS = 4
HEAVY = ("numpy", "pandas")
BROKER = "benchmarks.supervision.tasks:broker"
_READY = re.compile(rb"^READY (\d+)")


@dataclass(frozen=True)
class Weight:
    """What the application imports, and how long that takes at least."""

    seconds: float = 0.0
    modules: Sequence[str] = ()

    def environment(self) -> dict[str, str]:
        return {SECONDS: str(self.seconds), MODULES: " ".join(self.modules)}


@dataclass(frozen=True)
class Contestant:
    """How to run one.

    Attributes:
        needs: the package or program without which it is left out.
        ready: its line when a worker takes work; group 1, if there is one: the worker's pid.
        command: of the folder of its round.
        client: of the folder too.
        fragile: after a death it may not go on.
    """

    name: str
    needs: str
    ready: re.Pattern[bytes]
    command: Callable[[Path], Sequence[str]]
    client: Callable[[Path], Client]
    fragile: bool = False

    @property
    def there(self) -> bool:
        return find_spec(self.needs) is not None or program(self.needs) is not None


@dataclass(frozen=True)
class Round:
    """A contestant that is up: all workers READY, and a client that has its work done."""

    contestant: Contestant
    running: Running
    client: Client
    ledger: Path


@contextmanager
def up(
    contestant: Contestant, weight: Weight, extra: Mapping[str, str] | None = None
) -> Iterator[Round]:
    """One round of it, in places of its own; nothing of it is left afterwards."""
    with places() as (folder, variables), environment(variables):
        running = Running(
            contestant.command(folder),
            {**variables, **weight.environment(), **(extra or {})},
            folder,
        )
        try:
            for _ in range(WORKERS):
                running.until(contestant.ready)
            client = contestant.client(folder)
            try:
                client.who(WORKERS, 0.01)
                yield Round(contestant, running, client, folder / "ledger")
            finally:
                client.close()
        finally:
            running.end()


def program(name: str) -> str | None:
    """Beside this Python, or in PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else which(name)


def module(name: str, *arguments: str) -> list[str]:
    """The command that has this Python run it."""
    return [sys.executable, "-m", name, *arguments]


def supervise(name: str = "taskiq-supervise") -> Contestant:
    return Contestant(
        name,
        "taskiq_supervise",
        re.compile(rb"worker=\d+ gen=\d+ pid=(\d+) ready"),
        lambda _: module("taskiq_supervise", BROKER, "--workers", str(WORKERS)),
        lambda _: TaskiqClient(),
    )


def taskiq_worker() -> Contestant:
    return Contestant(
        "taskiq worker",
        "taskiq",
        re.compile(rb"Listening started"),
        lambda _: module("taskiq", "worker", BROKER, "--workers", str(WORKERS)),
        lambda _: TaskiqClient(),
    )


def gunicorn(*, preload: bool = True) -> Contestant:
    return Contestant(
        "gunicorn --preload" if preload else "gunicorn",
        "gunicorn",
        _READY,
        lambda folder: module(
            *("gunicorn", "benchmarks.supervision.wsgi:application"),
            *("--workers", str(WORKERS), "--bind", f"unix:{folder}/http"),
            *("--config", "python:benchmarks.supervision.gunicorn_hooks"),
            *(["--preload"] if preload else []),
        ),
        lambda folder: HttpClient(folder / "http"),
    )


def uwsgi() -> Contestant:
    return Contestant(
        "uWSGI",
        "uwsgi",
        _READY,
        lambda folder: [
            *(program("uwsgi") or "uwsgi", "--master", "--processes", str(WORKERS)),
            *("--http-socket", f"{folder}/http", "--module", "benchmarks.supervision.wsgi"),
            *("--virtualenv", sys.prefix, "--pythonpath", str(ROOT), "--die-on-term"),
            *("--need-app", "--listen", "64"),
        ],
        lambda folder: HttpClient(folder / "http"),
    )


def celery() -> Contestant:
    return Contestant(
        "Celery, prefork",
        "celery",
        _READY,
        lambda _: module(
            *("celery", "--app", "benchmarks.supervision.celery_tasks", "worker"),
            *("--pool", "prefork", "--concurrency", str(WORKERS), "--loglevel", "WARNING"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ),
        lambda _: CeleryClient(),
        fragile=True,
    )


def present(contestants: Sequence[Contestant]) -> tuple[list[Contestant], list[str]]:
    """Those that are installed, and a note for each that is not."""
    there = [each for each in contestants if each.there]
    return there, [f"{each.name}: not installed here" for each in contestants if not each.there]

"""Who gives a contestant its work, as much each: by tasks of taskiq, requests, Celery tasks."""

from __future__ import annotations

import asyncio
import http.client
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE = 30.0
"""Seconds for one task or request."""


class Client(Protocol):
    """Open from its making to close()."""

    def who(self, count: int, seconds: float) -> list[int]:
        """Runs `count` tasks of `seconds` at once; the pids of the workers that ran them."""

    def load(self, lanes: int, seconds: float, stop: Callable[[], bool]) -> list[int]:
        """One task of `seconds` after the other in each of `lanes`, each noted in the ledger.

        Until stop(); the numbers of those that were accepted.
        """

    def close(self) -> None: ...


class TaskiqClient:
    """Of `benchmarks.supervision.tasks`, on a loop of its own."""

    def __init__(self) -> None:
        self._tasks = import_module("benchmarks.supervision.tasks")
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._tasks.broker.startup())

    def who(self, count: int, seconds: float) -> list[int]:
        async def run() -> list[int]:
            sent = [await self._tasks.who.kiq(seconds) for _ in range(count)]
            return [(await each.wait_result(timeout=PATIENCE)).return_value for each in sent]

        return self._loop.run_until_complete(run())

    def load(self, lanes: int, seconds: float, stop: Callable[[], bool]) -> list[int]:
        accepted: list[int] = []
        numbers = iter(range(1_000_000_000))

        async def lane() -> None:
            while not stop():
                number = next(numbers)
                task = await self._tasks.note.kiq(number, seconds)
                accepted.append(number)
                with suppress(Exception):  # lost or not: the ledger knows
                    await task.wait_result(timeout=PATIENCE)

        async def run() -> None:
            await asyncio.gather(*(lane() for _ in range(lanes)))

        self._loop.run_until_complete(run())
        return accepted

    def close(self) -> None:
        self._loop.run_until_complete(self._tasks.broker.shutdown())
        self._loop.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class HttpClient:
    """Of `benchmarks.supervision.wsgi` behind a Unix socket: a connection per request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(16)

    def _get(self, address: str) -> int:
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", address)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.client.OK:
                raise http.client.HTTPException(f"{address}: {answer.status}")
            return int(body)
        finally:
            connection.close()

    def who(self, count: int, seconds: float) -> list[int]:
        return list(self._pool.map(self._get, [f"/who/{seconds}"] * count))

    def load(self, lanes: int, seconds: float, stop: Callable[[], bool]) -> list[int]:
        accepted: list[int] = []
        numbers = iter(range(1_000_000_000))
        lock = threading.Lock()

        def lane(_: int) -> None:
            while not stop():
                with lock:
                    number = next(numbers)
                    accepted.append(number)
                with suppress(OSError, http.client.HTTPException):  # the ledger knows
                    self._get(f"/note/{number}/{seconds}")

        list(self._pool.map(lane, range(lanes)))
        return accepted

    def close(self) -> None:
        self._pool.shutdown()


class CeleryClient:
    """Of `benchmarks.supervision.celery_tasks`, imported anew: its folder is that of the round."""

    def __init__(self) -> None:
        name = "benchmarks.supervision.celery_tasks"
        sys.modules.pop(name, None)
        self._module: Any = import_module(name)

    def who(self, count: int, seconds: float) -> list[int]:
        module, before = self._module, len(self._answers())
        for _ in range(count):
            module.who.delay(seconds)
        for message in module.SENT.iterdir():
            message.rename(module.MESSAGES / message.name)
        deadline = time.monotonic() + PATIENCE
        while len(answers := self._answers()[before:]) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(answers)} of {count} Celery tasks in {PATIENCE:.0f} s")
            time.sleep(0.002)
        return [int(pid) for pid in answers]

    def _answers(self) -> list[str]:
        path: Path = self._module.ANSWERS
        return path.read_text().split() if path.exists() else []

    def load(self, lanes: int, seconds: float, stop: Callable[[], bool]) -> list[int]:
        raise NotImplementedError("Celery's reload is not measured")

    def close(self) -> None:
        self._module.app.close()

"""The load of the chaos tests: a client process that sends tasks until its standard input ends.

Then it waits for all results, and writes what it knows of each task that was accepted to the file
that its argument names: one line of JSON each. Each task is in the file `accepted` as soon as its
`kiq()` has returned, should the client be killed before. A task's id is its number.

    python chaos_client.py REPORT SEED PATIENCE KINDS FIRST
"""

import asyncio
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

from taskiq import TaskiqResultTimeoutError

SENDERS = 8
MOST_AT_ONCE = 12
"""Tasks that a sender sends before it waits for their results."""
ASKED_EVERY = 0.05
"""Seconds: a result backend that rings no bell."""


class Client:
    def __init__(
        self, application: Any, seed: str, patience: float, kinds: list[str], first: int
    ) -> None:
        """first: the number of its first task."""
        self.report: list[dict[str, Any]] = []
        self._app = application
        self._seed = seed
        self._patience = patience
        self._kinds = kinds
        self._numbers = itertools.count(first)
        self._ended = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        await self._app.broker.startup()
        loop.add_reader(sys.stdin.fileno(), self._ended.set)
        await asyncio.gather(*(self._send(sender) for sender in range(SENDERS)))
        loop.remove_reader(sys.stdin.fileno())
        await self._app.broker.shutdown()

    async def _send(self, sender: int) -> None:
        chance = random.Random(f"{self._seed} {sender}")
        while not self._ended.is_set():
            sent = []
            for _ in range(chance.randint(1, MOST_AT_ONCE)):
                number = next(self._numbers)
                kind = chance.choice(self._kinds)
                task = await self._kiq(kind, number, chance)
                sent.append((number, kind, task))
            for number, kind, task in sent:
                outcome = await self._outcome(number, task)
                self.report.append({"number": number, "kind": kind, "outcome": outcome})

    async def _kiq(self, kind: str, number: int, chance: random.Random) -> Any:
        kicker = getattr(self._app, "pause" if kind == "early" else kind).kicker()
        kicker = kicker.with_task_id(str(number))
        match kind:
            case "pause" | "block":
                task = await kicker.kiq(number, chance.uniform(0, 0.05))
            case "early":
                early = kicker.with_labels(ack_type="when_received")
                task = await early.kiq(number, chance.uniform(0, 0.02))
            case _:
                task = await kicker.kiq(number)
        self._app.append("accepted", kind, number)
        return task

    async def _outcome(self, number: int, task: Any) -> str:
        try:
            result = await task.wait_result(ASKED_EVERY, timeout=self._patience)
        except TaskiqResultTimeoutError:
            return "none"
        if result.is_err:
            return type(result.error).__name__
        return "value" if result.return_value == number else f"value {result.return_value!r}"


def main(report: str, seed: str, patience: str, kinds: str, first: str) -> None:
    sys.path.insert(0, ".")
    import app  # type: ignore[import-not-found]

    client = Client(app, seed, float(patience), kinds.split(","), int(first))
    asyncio.run(client.run())
    Path(report).write_text("".join(json.dumps(line) + "\n" for line in client.report))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""An application on taskiq's own ZeroMQBroker, and one on a broker that wants acknowledgements.

Copied as `app.py` into the folder of each test, as `application.py` is, with the same ledger, bell
and gate. Results are files in `results`, so that they outlive whatever is killed.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

from file_results import FileResults  # type: ignore[import-not-found]
from taskiq import (
    AckableMessage,
    AsyncBroker,
    BrokerMessage,
    Context,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqDepends,
    ZeroMQBroker,
)

ADDRESS = os.environ["E2E_ADDRESS"]


class MailBroker(AsyncBroker):
    """Every listener gets each message, again and again until one acknowledges it: files."""

    taskiq_supervise_broadcast = True

    async def kick(self, message: BrokerMessage) -> None:
        temporary = Path("mail", f".{message.task_id}")
        temporary.parent.mkdir(exist_ok=True)
        temporary.write_bytes(message.message)
        temporary.replace(Path("mail", message.task_id))

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        given: set[Path] = set()
        while True:
            for path in sorted(Path("mail").glob("[!.]*")):
                if path not in given:
                    given.add(path)
                    append("ledger", "given", path.name, os.getpid())
                    yield AckableMessage(data=path.read_bytes(), ack=partial(self._ack, path))
            await asyncio.sleep(0.01)  # a folder rings no bell

    def _ack(self, path: Path) -> None:
        append("ledger", "ack", path.name, os.getpid())
        path.unlink()


class SlowBroker(ZeroMQBroker):
    """Subscribes a moment after it was asked to listen, as happens on a busy machine."""

    async def listen(self) -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0.1)
        async for message in super().listen():
            yield message


results = FileResults()
broker = (
    ZeroMQBroker(ADDRESS, ADDRESS)
    .with_middlewares(SimpleRetryMiddleware(default_retry_count=3))
    .with_result_backend(results)
)
smart = (
    ZeroMQBroker(ADDRESS, ADDRESS)
    .with_middlewares(SmartRetryMiddleware(default_retry_count=3, default_delay=0.3))
    .with_result_backend(results)
)
slow = SlowBroker(ADDRESS, ADDRESS).with_result_backend(results)
mail = MailBroker().with_result_backend(results)


def append(path: str, *words: object) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(descriptor)


def ring(name: str) -> None:
    descriptor = os.open("bell", os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(descriptor, f"rang {name} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


async def pass_gate() -> None:
    """Waits without a thread."""
    loop = asyncio.get_running_loop()
    descriptor = os.open("gate", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            there = loop.create_future()
            loop.add_reader(descriptor, there.set_result, None)
            await there
            loop.remove_reader(descriptor)
            try:
                os.read(descriptor, 1)
            except BlockingIOError:  # another task took the byte
                continue
            return
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


for each in (broker, smart, slow, mail):

    @each.task("record")
    async def record(number: int) -> int:
        append("ledger", "record", number, os.getpid())
        return number

    @each.task("hold")
    async def hold(number: int) -> int:
        append("ledger", "hold", number, os.getpid())
        ring(f"hold-{number}")
        await pass_gate()
        append("ledger", "held", number, os.getpid())
        return number

    @each.task("flaky", retry_on_error=True)
    async def flaky(number: int, context: Context = TaskiqDepends()) -> str:
        """Fails at its first two starts."""
        append("ledger", "flaky", number, os.getpid())
        retries = int(context.message.labels.get("_retries", 0))
        if retries < 2:
            raise ValueError(f"not yet, after {retries} retries")
        return f"after {retries} retries"

    @each.task("die")
    async def die(number: int) -> None:
        append("ledger", "die", number, os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)


@broker.task("block")
async def block(number: int) -> None:
    """Of all places on the event loop."""
    append("ledger", "block", number, os.getpid())
    time.sleep(3600)  # noqa: ASYNC251


@broker.task("relay")
async def relay(number: int) -> str:
    """Sends a task by itself, which no worker of this broker could."""
    task = await broker.find_task("record").kiq(number)  # type: ignore[union-attr]
    return task.task_id

"""The application of the end-to-end tests; copied as `app.py` into the folder of each test.

A task notes what it does in `ledger`, a file that several processes append to, so that the count
survives whatever is killed. Tasks that have to be caught at work ring `bell` when they have begun
and wait at `gate`; both are FIFOs that the test holds open, one byte in the gate lets one task by.
"""

import asyncio
import os
import signal
import threading
import time

from taskiq import Context, TaskiqDepends

from taskiq_supervise import SharedMemoryBroker

broker = SharedMemoryBroker("e2e")
thing = 42


def make_broker() -> SharedMemoryBroker:
    return broker


def append(path: str, *words: object) -> None:
    line = " ".join(map(str, words)) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


async def pass_gate() -> None:
    """Waits without a thread: one that waits in `read` could not be cancelled."""
    loop = asyncio.get_running_loop()
    passed = loop.create_future()
    descriptor = os.open("gate", os.O_RDONLY | os.O_NONBLOCK)

    def try_to_pass() -> None:
        try:
            os.read(descriptor, 1)
        except BlockingIOError:  # another task took the byte
            return
        if not passed.done():
            passed.set_result(None)

    loop.add_reader(descriptor, try_to_pass)
    try:
        await passed
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@broker.task
async def record(number: int) -> int:
    append("ledger", "record", number, os.getpid())
    return number


@broker.task
async def now() -> float:
    return time.time()


@broker.task
def block(seconds: float) -> int:
    append("ledger", "block", seconds, os.getpid())
    time.sleep(seconds)
    return os.getpid()


@broker.task
def hold(name: str) -> str:
    append("ledger", "hold", name, os.getpid())
    append("bell", "hold", name, os.getpid())
    descriptor = os.open("gate", os.O_RDONLY)
    try:
        os.read(descriptor, 1)
    finally:
        os.close(descriptor)
    append("ledger", "held", name, os.getpid())
    return name


@broker.task
async def hold_async(name: str) -> str:
    append("ledger", "hold", name, os.getpid())
    append("bell", "hold", name, os.getpid())
    try:
        await pass_gate()
    except asyncio.CancelledError:
        append("ledger", "cancelled", name, os.getpid())
        raise
    append("ledger", "held", name, os.getpid())
    return name


@broker.task
async def kill_own_worker(signal_number: int) -> None:
    append("ledger", "kill", signal_number, os.getpid())
    os.kill(os.getpid(), signal_number)
    signal.pause()


@broker.task
async def block_the_loop() -> None:
    append("bell", "block_the_loop", "-", os.getpid())
    time.sleep(1000)  # noqa: ASYNC251 - that is the point


@broker.task
async def reverse(content: bytes) -> bytes:
    return content[::-1]


class HoldsALock(Exception):
    def __init__(self) -> None:
        super().__init__("the disk is on fire", threading.Lock())


@broker.task
async def raise_unserializable() -> None:
    raise HoldsALock


@broker.task
async def return_unserializable() -> object:
    return threading.Lock()


@broker.task
async def divide(dividend: int, divisor: int) -> float:
    return dividend / divisor


@broker.task
async def own_id(context: Context = TaskiqDepends()) -> str:
    return context.message.task_id

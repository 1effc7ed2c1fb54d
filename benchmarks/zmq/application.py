"""One application on the broker that the environment names; its task does next to nothing."""

import os

from taskiq import AsyncBroker
from taskiq import ZeroMQBroker as StockBroker

from benchmarks import ledger
from benchmarks.zmq.choice import ADDRESS, KIND
from taskiq_supervise import SharedMemoryBroker, ZeroMQBroker


def chosen() -> AsyncBroker:
    kind, address = os.environ[KIND], os.environ.get(ADDRESS, "")
    if kind == "stock":
        return StockBroker(zmq_pub_host=address, zmq_sub_host=address)
    if kind == "own":
        return ZeroMQBroker(zmq_pub_host=address, zmq_sub_host=address)
    return SharedMemoryBroker("benchmark")


broker = chosen()


@broker.task(task_name="note")
async def note(number: int) -> None:
    ledger.note(number)


@broker.task(task_name="nothing")
async def nothing() -> None:
    return None

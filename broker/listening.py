"""Messages for receivers that are not ours, and their acknowledgements: they know of no leases.

taskiq's receiver says "acknowledged" for five reasons: received, executed, saved, by the task
itself, and also for a message that it cannot parse or whose task it does not know. The lease has a
different end for each, and the acknowledgement alone does not tell them apart. What has been saved
by then, and what comes of reading the message again, does.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

from taskiq.acks import AckableMessage

from taskiq_supervise.broker.delivery import Delivery
from taskiq_supervise.broker.queue_broker import QueueBroker
from taskiq_supervise.ipc import DeadReason, LeaseLost

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker

    from taskiq_supervise.broker.shared_memory import SharedMemoryBroker

logger = logging.getLogger("taskiq_supervise.broker")


class Acknowledged:
    """Deliveries of one listener that were acknowledged before they had a result.

    taskiq runs each message in an asyncio task of its own: when that ends and no result has come,
    none will. Someone who reads `listen()` and acknowledges in one and the same asyncio task is
    done with a message when asking for the next.
    """

    def __init__(self) -> None:
        self._by_task: dict[asyncio.Task[object], list[Delivery]] = {}

    def add(self, delivery: Delivery) -> None:
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in an asyncio task"
        if task not in self._by_task:
            task.add_done_callback(self._finish)
        self._by_task.setdefault(task, []).append(delivery)

    def finish_own(self) -> None:
        """The deliveries that the running asyncio task has acknowledged."""
        task = asyncio.current_task()
        if task is not None and task in self._by_task:
            for delivery in self._by_task[task]:
                delivery.finish()
            self._by_task[task].clear()

    def _finish(self, task: "asyncio.Task[object]") -> None:
        for delivery in self._by_task.pop(task):
            delivery.finish()


async def messages(
    feed: "SharedMemoryBroker", broker: "AsyncBroker"
) -> AsyncGenerator[AckableMessage, None]:
    """What `listen()` of a broker yields that takes its messages from the queue of `feed`.

    It cannot see when a task begins, so a message counts as started when it is handed over.
    """
    acknowledged = Acknowledged()
    try:
        while True:
            acknowledged.finish_own()
            delivery = await feed.next_delivery(keep=keeps_results(broker))
            try:
                delivery.start()
            except LeaseLost as error:
                delivery.lost(error)
                continue
            ack = partial(acknowledge, broker, delivery, acknowledged)
            yield AckableMessage(data=delivery.payload, ack=ack)
    finally:
        acknowledged.finish_own()


def keeps_results(broker: "AsyncBroker") -> bool:
    """Its results go into the queue, by its own result backend."""
    return isinstance(broker, QueueBroker) and broker.keeps_results


async def acknowledge(
    broker: "AsyncBroker", delivery: Delivery, acknowledged: Acknowledged
) -> None:
    """What the `ack` of an AckableMessage does."""
    if delivery.ended:  # saving the result was the acknowledgement
        return
    unusable = why_unusable(broker, delivery.payload)
    if unusable is not None:
        delivery.dead_letter(*unusable)
    elif keeps_results(broker):
        await delivery.ack()
        acknowledged.add(delivery)
    else:
        delivery.finish()


def why_unusable(broker: "AsyncBroker", payload: bytes) -> tuple[DeadReason, str] | None:
    """Why no worker with this broker's tasks can run a message, None if one can."""
    try:
        message = broker.formatter.loads(payload)
        message.parse_labels()
    except Exception as error:
        return DeadReason.UNPARSABLE, f"{type(error).__name__}: {error}"
    if broker.find_task(message.task_name) is None:
        return DeadReason.UNKNOWN_TASK, message.task_name
    return None

"""Where a listener's queue is, and how it is opened."""

from pathlib import Path
from typing import TYPE_CHECKING

from taskiq_supervise.broker.zeromq import ZeroMQBroker
from taskiq_supervise.ipc import AsyncTaskQueue, Role, TaskQueue
from taskiq_supervise.ipc.segment import queue_directory
from taskiq_supervise.worker.feed import feed_name
from taskiq_supervise.worker.listener.intake import Intake, SegmentIntake

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker

    from taskiq_supervise.worker.config import WorkerConfig
    from taskiq_supervise.worker.order import ForkOrder


def folder_of_queue(config: "WorkerConfig", order: "ForkOrder") -> Path:
    """The queue's, made if need be. Raises SegmentError."""
    if config.transport == "zmq":
        from taskiq_supervise.worker.hub_feed import hub_base, hub_folder

        return hub_folder(hub_base(order.board), feed_name(config))
    return queue_directory(feed_name(config))


async def open_intake(broker: "AsyncBroker", config: "WorkerConfig", order: "ForkOrder") -> Intake:
    """For the one that has the baton. Raises QueueError."""
    settings = broker.listener_settings() if isinstance(broker, ZeroMQBroker) else None
    max_deliveries = settings.max_deliveries if settings is not None else 0
    if config.transport == "zmq":
        from taskiq_supervise.worker.listener.store_intake import StoreIntake

        result_ttl = None if settings is None else settings.result_ttl
        return await StoreIntake.open(
            folder_of_queue(config, order), result_ttl=result_ttl, max_deliveries=max_deliveries
        )
    queue = TaskQueue.open(feed_name(config), role=Role.CLIENT, guardian=order.guardian)
    try:
        if settings is not None and settings.result_ttl is not None:
            queue.result_ttl = settings.result_ttl
        waiting = AsyncTaskQueue(queue)
        await waiting.start()
    except BaseException:
        queue.close()
        raise
    return SegmentIntake(waiting, max_deliveries=max_deliveries)

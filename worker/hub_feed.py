"""The feed of a pool without shared memory: the same broker, joined to the listener's hub."""

import os
from pathlib import Path

from taskiq_supervise.broker.attachment import Attachment
from taskiq_supervise.broker.shared_memory import SharedMemoryBroker
from taskiq_supervise.ipc import QUEUE_DIRECTORY_VARIABLE, Role
from taskiq_supervise.worker.hub_client import HubQueue


class HubFeed(SharedMemoryBroker):
    """Made for a worker, which says where the hub is (`directory`).

    most: messages that it can run at the same time; 0 and less: any number.
    """

    def __init__(self, name: str, most: int = 0) -> None:
        super().__init__(name)
        self._most = max(0, most)

    async def _attach(self, *, is_main: bool) -> Attachment:
        takes = self.is_worker_process and is_main
        queue = HubQueue(hub_folder(self.base_directory, self.name), takes=takes, most=self._most)
        attachment = Attachment(queue, Role.WORKER if takes else Role.CLIENT)
        await attachment.start()
        return attachment


def hub_base(board: str) -> Path:
    """Where the folders of hubs are: as configured for queues, else with the supervisor's files.

    board: the path of the pool's board.
    """
    configured = os.environ.get(QUEUE_DIRECTORY_VARIABLE)
    return Path(configured).absolute() if configured else Path(board).parent


def hub_folder(base: Path, name: str) -> Path:
    """The store's, the hub's and its listener's; made if need be, for this user alone."""
    folder = base / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder

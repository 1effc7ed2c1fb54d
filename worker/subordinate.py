"""A process that its supervisor orders about: its loop, its signals, what it obeys and says.

What workers and listeners have in common. One loop (uvloop), on which everything is an event:
signals, orders of the supervisor, the end of its link.
"""

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING

import uvloop

from taskiq_supervise.worker.application import user_traceback
from taskiq_supervise.worker.failpoint import failpoint
from taskiq_supervise.worker.stacks import dump_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from taskiq_supervise.ipc import BoardWriter
    from taskiq_supervise.worker.link import Link
    from taskiq_supervise.worker.order import Descriptors, ForkOrder

logger = logging.getLogger("taskiq_supervise.worker")

INTERNAL_ERROR = 1
BOOT_FAILED = 3

HEARTBEAT = 1.0
"""Seconds. Costs some 30 µs each: four idle workers stay below 0.2 ms of CPU per second."""


class Subordinate:
    """Base of what runs in a forked process, from the moment it has its application."""

    def __init__(
        self, link: "Link", order: "ForkOrder", board: "BoardWriter", descriptors: "Descriptors"
    ) -> None:
        self._link = link
        self._order = order
        self._board = board
        self._descriptors = descriptors
        self._is_seen = False
        self._ordered = False
        """The supervisor wants this process to stop, or is gone."""
        self._go: asyncio.Event
        self._finish: asyncio.Event
        self._stop: asyncio.Event

    def run(self) -> int:
        """The exit status: 0, INTERNAL_ERROR or BOOT_FAILED."""
        # Not uvloop.run(): closing the loop would wait for tasks that are given back, which never
        # return, and for threads that run them. The process ends instead.
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(self._begin())

    async def _begin(self) -> int:
        self._go = asyncio.Event()
        self._finish = asyncio.Event()
        self._stop = asyncio.Event()
        self._handle_signals()
        self._link.listen(self._obey, self._stop_as_ordered, self._worker_gone)
        return await self._live()

    async def _live(self) -> int:
        """Until the process is to end; its exit status."""
        raise NotImplementedError

    async def _go_ahead(self) -> bool:
        """Waits until the supervisor knows of us: else a task that we took could be taken twice.

        The zygote may die before it has answered, and then nobody looks after us.
        """
        waiters = [
            asyncio.ensure_future(event.wait()) for event in (self._go, self._finish, self._stop)
        ]
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        for waiter in waiters:
            waiter.cancel()
        return self._go.is_set() and not self._stop.is_set()

    def _be_seen(self) -> None:
        """From now on the board tells of us."""
        # Not before we are known: the seat may be another's.
        self._board.reset(os.getpid(), self._order.generation)
        self._is_seen = True
        self._beat()

    def _beat(self) -> None:
        self._show()
        asyncio.get_running_loop().call_later(HEARTBEAT, self._beat)

    def _show(self) -> None:
        """Says on the board how it is."""
        self._board.beat()

    # --- what it says ----------------------------------------------------------------------------

    def _be_ready(self) -> None:
        failpoint("ready.before")
        self._link.say("ready")
        failpoint("ready.after")

    def _say_boot_failed(self, what: str, error: BaseException, *, final: bool = False) -> None:
        """final: another attempt would end in the same way."""
        text = str(error).strip()
        message = f"{what}: {type(error).__name__}"
        message += f": {text.splitlines()[0]}" if text else ""
        self._link.say(
            "boot_failed",
            kind="final" if final else "startup",
            message=message,
            traceback=user_traceback(error),
        )

    def _worker_gone(self, obituary: "Mapping[str, Any]") -> None:
        """A worker is dead; only listeners are told."""

    def _explain_end(self) -> None:
        """Our end is planned, and not the fault of what runs here."""

    # --- what is asked of it ---------------------------------------------------------------------

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self._drain)
        # Not through the loop, which may be what hangs.
        signal.signal(signal.SIGQUIT, self._quit)

    def _quit(self, _number: int, _frame: object) -> None:
        try:
            self._explain_end()
        finally:
            os._exit(0)

    def _terminate(self) -> None:
        """Sent: drain, the second time stop. From the kernel, the supervisor being gone: stop."""
        if self._finish.is_set() or os.getppid() != self._order.supervisor_pid:
            self._stop_now()
        else:
            self._drain()

    def _obey(self, order: str) -> None:
        if order == "go":
            self._go.set()
        elif order == "answer":
            self._link.say("answer")
        elif order == "tasks":
            dump_tasks(self._descriptors.stacks)
        elif order == "drain":
            self._drain()
        elif order == "stop":
            self._stop_as_ordered()
        else:
            logger.error("The supervisor asks for %r, which is unknown here", order)

    def _drain(self) -> None:
        if not self._finish.is_set():
            failpoint("drain.before")
            self._finish.set()
            self._link.say("draining")

    def _stop_as_ordered(self) -> None:
        self._ordered = True
        self._stop_now()

    def _stop_now(self) -> None:
        self._stop.set()

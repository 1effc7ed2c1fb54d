"""What a broker and a worker need of a queue, in shared memory or at the other end of a socket."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from taskiq_supervise.ipc import DeadReason, Outcome, Ticket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer


class Held(Protocol):
    """A message that this process has taken: ipc's Lease, or the like.

    Its steps raise LeaseLost when somebody else has the message by now.
    """

    task_id: str
    payload: bytes
    buffers: tuple[memoryview, ...]
    attempt: int
    """How often it was started, this time included once it was."""

    def start(self) -> int:
        """From here on this process's death counts. Raises LeaseExpired."""
        ...

    def finish(self, *, keep: bool) -> None: ...

    def dead_letter(self, reason: DeadReason, detail: str) -> None: ...

    def release(self) -> None: ...


class Queue(Protocol):
    """On one event loop: ipc's AsyncTaskQueue, or the like."""

    @property
    def directory(self) -> Path:
        """Its folder."""
        ...

    @property
    def others_are_empty(self) -> bool:
        """Another worker holds nothing and looks for work."""
        ...

    async def start(self) -> None: ...

    async def put(
        self,
        task_id: str,
        payload: "Buffer",
        *,
        buffers: "Sequence[Buffer]" = (),
        priority: int = ...,
        due: float | None = None,
        expires: float | None = None,
        max_deliveries: int = 0,
        timeout: float | None = None,
    ) -> Ticket:
        """Waits for room. Raises QueueFull after the timeout, PayloadTooLarge."""
        ...

    async def claim(self) -> Held: ...

    async def acknowledge(self, lease: Any) -> None:
        """When it returns, the message never runs again, whatever happens. Raises LeaseLost."""
        ...

    async def complete(
        self,
        lease: Any,
        result: "Buffer",
        buffers: "Sequence[Buffer]" = (),
        *,
        timeout: float | None = None,
    ) -> None:
        """Result and acknowledgement in one step. Raises LeaseLost, PayloadTooLarge, QueueFull."""
        ...

    async def wait(self, task: str | Ticket, timeout: float | None = None) -> Outcome:
        """Raises TimeoutError (asyncio's), UnknownTask."""
        ...

    async def look(self, task_id: str) -> Outcome | None:
        """How it ended, None if it has not. Raises UnknownTask."""
        ...

    def is_over(self, task_id: str) -> bool:
        """It has ended, or nothing is known of it; as far as can be said at once."""
        ...

    def explain_end(self) -> None:
        """This process is about to end as planned: what it runs goes back without a fault."""
        ...

    async def close(self) -> None: ...

    def abandon(self) -> None:
        """close() when its loop is closed."""
        ...

"""What our brokers share: counted startups on any loop, and task objects that are woken.

The constructor of such a broker opens nothing, so it may be made at import, before a fork, and be
pickled. What it needs on an event loop, its attachment, is made in `startup()`. A child of a fork
has nothing of its parent's and attaches for itself when it first uses the broker.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskiq.abc.broker import AsyncBroker

from taskiq_supervise.broker.attachments import Attached, Attachments
from taskiq_supervise.broker.formatter import FrameFormatter
from taskiq_supervise.broker.results import QueueResultBackend
from taskiq_supervise.broker.task import QueueDecoratedTask

if TYPE_CHECKING:
    import sys
    from collections.abc import Callable

    from taskiq.abc.result_backend import AsyncResultBackend

    from taskiq_supervise.ipc import Ticket

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

_Attachment = TypeVar("_Attachment", bound=Attached)


class QueueBroker(AsyncBroker, Generic[_Attachment]):
    """A broker whose queue also keeps the results, in this machine's memory or behind a socket."""

    name: str
    """The queue, as errors name it."""
    takes_buffers = True
    """Tells FrameFormatter that `kick()` knows Payload and the labels."""

    def __init__(self, task_id_generator: "Callable[[], str] | None" = None) -> None:
        super().__init__()
        if task_id_generator is not None:
            self.with_id_generator(task_id_generator)
        self.formatter = FrameFormatter(self)
        self.decorator_class = QueueDecoratedTask
        self._attachments: Attachments[_Attachment] = Attachments()
        self._newest_ticket: Ticket | None = None

    @abstractmethod
    async def _attach(self, *, is_main: bool) -> _Attachment:
        """A new one for the running loop. is_main: the loop on which a worker takes messages; its
        others only send and wait."""

    @abstractmethod
    def _new_results(self) -> QueueResultBackend[Any]:
        """A result backend of its kind."""

    def own_results(self) -> QueueResultBackend[Any]:
        """The result backend of the queue, also when the broker was given another."""
        backend = self.result_backend
        if isinstance(backend, QueueResultBackend) and backend.belongs_to(self):
            return backend
        own = self._new_results()
        own.bind(self)
        return own

    @property
    def keeps_results(self) -> bool:
        """Results go into the queue: acknowledgement and result are one step."""
        backend = self.result_backend
        return isinstance(backend, QueueResultBackend) and backend.belongs_to(self)

    def with_result_backend(self, result_backend: "AsyncResultBackend[Any]") -> "Self":
        if isinstance(result_backend, QueueResultBackend):
            result_backend.bind(self)
        return super().with_result_backend(result_backend)

    async def startup(self) -> None:
        """Attaches the running loop to the queue.

        May be called again, on this loop or another: the first call in a process runs taskiq's
        events, and each wants a `shutdown()` of its own. Inside a task it belongs to the task.
        """
        await self._attachments.discard_closed()
        first = self._attachments.begin()
        try:
            if self._attachments.here() is None:
                await self._attach_here(is_main=first)
            if first:
                await super().startup()
        except BaseException:
            if self._attachments.end():
                await self._attachments.close_all()
            await self._attachments.close_here()
            raise

    async def shutdown(self) -> None:
        """Undoes one `startup()` of the running loop; one too many does nothing.

        The last runs taskiq's events, which may still send tasks, and then leaves the queue.
        """
        await self._attachments.discard_closed()
        last = self._attachments.end()
        if last is None:
            return
        try:
            if last:
                await super().shutdown()
        finally:
            if last:
                await self._attachments.close_all()
            else:
                await self._attachments.close_here()

    async def attached(self) -> _Attachment | None:
        """The queue for this process and loop; attached anew after a fork, or in a new loop."""
        attachment = self._attachments.here()
        if attachment is not None:
            return attachment
        await self._attachments.discard_closed()
        return await self._attach_here(is_main=True) if self._attachments.may_adopt else None

    def why_not_started(self) -> str:
        if not self._attachments.elsewhere:
            return "await broker.startup() first"
        return (
            "the broker was started on another event loop, which still runs; "
            "await broker.startup() on this one too"
        )

    def ticket_of(self, task_id: str) -> "Ticket | None":
        """What the queue returned for the message that was sent last, if it has this id."""
        ticket = self._newest_ticket
        return ticket if ticket is not None and ticket.task_id == task_id else None

    async def _attach_here(self, *, is_main: bool) -> _Attachment:
        attachment = await self._attach(is_main=is_main)
        self._attachments.put(attachment)
        return attachment

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_newest_ticket": None}

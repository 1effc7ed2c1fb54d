"""What a listener listens to: a broker that is not ours, or our own server."""

from typing import TYPE_CHECKING, Protocol

from taskiq_supervise.worker.listener.server import Server

if TYPE_CHECKING:
    from taskiq_supervise.broker.zeromq import ZeroMQBroker
    from taskiq_supervise.worker.listener.intake import Intake


class Source(Protocol):
    """Called on the listener's loop, in this order; what goes wrong is raised."""

    @property
    def received(self) -> int:
        """Messages that were put so far."""
        ...

    async def open(self) -> None:
        """Everything that may be done while another listener has the baton."""
        ...

    def begin(self, intake: "Intake") -> None:
        """With the baton."""
        ...

    async def run(self) -> None:
        """Puts what arrives, until `finish()` or `close()`."""
        ...

    async def finish(self) -> None:
        """Takes nothing more, and puts what it has."""
        ...

    async def close(self) -> None:
        """Lets go of everything, at any time."""
        ...


class OwnSource:
    """The server of taskiq_supervise.ZeroMQBroker's clients."""

    def __init__(self, broker: "ZeroMQBroker") -> None:
        self._broker = broker
        self._server: Server | None = None

    @property
    def received(self) -> int:
        return 0 if self._server is None else self._server.received

    async def open(self) -> None:
        if not self._broker.keeps_results:
            await self._broker.result_backend.startup()

    def begin(self, intake: "Intake") -> None:
        self._server = Server(self._broker.listener_settings(), intake)
        self._server.bind()

    async def run(self) -> None:
        if self._server is not None:
            await self._server.serve()

    async def finish(self) -> None:
        if self._server is not None:
            await self._server.drain()
            await self._server.close()

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()
        if not self._broker.keeps_results:
            await self._broker.result_backend.shutdown()

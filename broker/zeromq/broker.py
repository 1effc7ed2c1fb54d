"""ZeroMQBroker: tasks and results over ZeroMQ, with taskiq-supervise at the other end.

A drop-in for taskiq's own: same arguments, other promises. There, the client publishes, and each
worker that happens to listen runs each task. Here, one process of the pool listens; clients connect
to it, and `kiq()` returns when the pool's queue has accepted the task.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, TypeAlias

import zmq
from taskiq.acks import AckableMessage

from taskiq_supervise.broker import arguments
from taskiq_supervise.broker.errors import (
    BrokerNotStartedError,
    ConnectionDeniedError,
    ListenerUnreachableError,
    MessageRefusedError,
    MessageTooLargeError,
    QueueFullError,
    UnsuitableBrokerError,
)
from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.broker.payload import buffers_of, size_of
from taskiq_supervise.broker.queue_broker import QueueBroker
from taskiq_supervise.broker.shared_memory import SharedMemoryBroker
from taskiq_supervise.broker.zeromq.addresses import CLASS, Endpoint, to_bind, to_connect
from taskiq_supervise.broker.zeromq.connection import (
    Connection,
    ConnectionClosed,
    ConnectionRefused,
    NotAccepted,
    Where,
)
from taskiq_supervise.broker.zeromq.keys import (
    AllowList,
    KeyFileError,
    KeyPair,
    load_public,
    may_be_read_by_others,
)
from taskiq_supervise.broker.zeromq.outbox import PutRefused
from taskiq_supervise.broker.zeromq.protocol import Code, Put
from taskiq_supervise.broker.zeromq.results import ZeroMQResultBackend
from taskiq_supervise.broker.zeromq.settings import MAX_MESSAGE, ListenerSettings, check_pickle

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.message import BrokerMessage

    File: TypeAlias = str | os.PathLike[str]

logger = logging.getLogger("taskiq_supervise.broker")


class _Default(str):
    """An address that nobody has written."""

    __slots__ = ()


_BIND = _Default("tcp://0.0.0.0:5555")
_CONNECT = _Default("tcp://localhost:5555")


class FeedUse:
    """What one event loop of a worker has: its place in the queue that the pool is fed from."""

    def __init__(self, feed: QueueBroker[Any]) -> None:
        self.feed = feed
        self.loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """The feed itself looks after loops that are closed, or others'."""
        if self.loop is asyncio.get_running_loop():
            await self.feed.shutdown()


class ZeroMQBroker(QueueBroker[Connection | FeedUse]):
    """Tasks and results over ZeroMQ, from any number of clients to one pool of workers.

    zmq_pub_host: where the pool listens: tcp:// or ipc://. Without keys only addresses that this
        machine alone reaches; the default is narrowed to such a one.
    zmq_sub_host: where clients connect to; unless given, it follows from zmq_pub_host.
    server_secret_key, server_public_key: files with the listener's key, for itself and for clients.
    client_secret_key: a file with the client's key; without, it draws one that nobody knows.
    client_keys: whose clients may connect: a folder of public keys, a list of keys or files, or "*"
        for everybody who knows the server's public key.
    insecure: allow other addresses without keys. Whoever reaches them can send tasks and read them.
    kiq_timeout: seconds that `kiq()` waits for the queue to accept a task; None: as long as it
        takes (the label `kiq_timeout` says it for one task).
    max_message: bytes that a task may have, its arguments included.
    max_deliveries, result_ttl: as those of SharedMemoryBroker.
    """

    def __init__(
        self,
        zmq_pub_host: str = _BIND,
        zmq_sub_host: str = _CONNECT,
        result_backend: "AsyncResultBackend[Any] | None" = None,
        task_id_generator: "Callable[[], str] | None" = None,
        *,
        server_secret_key: "File | None" = None,
        server_public_key: "File | None" = None,
        client_secret_key: "File | None" = None,
        client_keys: "File | Iterable[File] | None" = None,
        insecure: bool = False,
        kiq_timeout: float | None = None,
        max_message: int = MAX_MESSAGE,
        max_deliveries: int | None = None,
        result_ttl: float | None = None,
    ) -> None:
        super().__init__(task_id_generator)
        bind = Endpoint.of(zmq_pub_host)
        follows = isinstance(zmq_sub_host, _Default) and not isinstance(zmq_pub_host, _Default)
        self._bind = bind
        self._bind_is_default = isinstance(zmq_pub_host, _Default)
        self._connect = bind if follows else Endpoint.of(zmq_sub_host)
        self.name = str(
            self._connect.on_loopback() if self._connect.is_everywhere else self._connect
        )
        if server_secret_key is not None and client_keys is None:
            raise ValueError(
                "with server_secret_key, client_keys has to say who may connect: a folder of the "
                "clients' public keys, a list of them, or \"*\" for all who know the server's"
            )
        if client_secret_key is not None and server_public_key is None:
            raise ValueError("with client_secret_key, a client needs server_public_key, too")
        if max_message < 1:
            raise ValueError(f"max_message is {max_message}, less than 1 byte")
        self._server_secret_key = server_secret_key
        self._server_public_key = server_public_key
        self._client_secret_key = client_secret_key
        self._clients = None if client_keys is None else AllowList(client_keys)
        self.insecure = insecure
        self.kiq_timeout = arguments.seconds("kiq_timeout", kiq_timeout)
        self.max_message = max_message
        self.max_deliveries = arguments.deliveries(max_deliveries)
        self.result_ttl = arguments.seconds("result_ttl", result_ttl)
        self.feed: QueueBroker[Any] | None = None
        """In a worker: the queue that the pool's listener fills."""
        self.with_result_backend(
            ZeroMQResultBackend() if result_backend is None else result_backend
        )

    # --- in a pool of taskiq-supervise -----------------------------------------------------------

    def listener_settings(self) -> ListenerSettings:
        """How the pool's listener is to listen. Raises UnsuitableBrokerError."""
        has_keys = self._server_secret_key is not None
        endpoint, note = to_bind(
            self._bind, is_default=self._bind_is_default, secured=has_keys or self.insecure
        )
        clients = self._clients if has_keys else None
        known = clients is not None and not clients.is_everybody
        check_pickle(self.serializer, endpoint, trusted=known)
        notes = [note] if note else []
        if not (endpoint.is_local or has_keys):
            notes.append(f"{endpoint} has no keys: whoever reaches it can send tasks and read them")
        keys = None
        try:
            if self._server_secret_key is not None:
                keys = KeyPair.load(self._server_secret_key)
                notes += _readable(self._server_secret_key)
            if clients is not None:
                clients.check()
        except KeyFileError as error:
            raise UnsuitableBrokerError(broker=CLASS, reason=str(error)) from None
        return ListenerSettings(
            bind=str(endpoint),
            is_ipv6=endpoint.is_ipv6,
            notes=tuple(notes),
            server_keys=keys,
            clients=clients,
            max_message=self.max_message,
            max_deliveries=self.max_deliveries,
            result_ttl=self.result_ttl,
        )

    def feed_from(self, feed: QueueBroker[Any]) -> None:
        """Makes this broker that of a worker: it sends into the feed and saves results there."""
        self.feed = feed
        feed.with_serializer(self.serializer)
        if isinstance(feed, SharedMemoryBroker):
            feed.max_deliveries = feed.max_deliveries or self.max_deliveries
            feed.kiq_timeout = self.kiq_timeout
            feed.result_ttl = self.result_ttl

    def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        """Only the workers of taskiq-supervise take tasks, and not by this."""
        raise self._not_supervised()

    # --- sending ---------------------------------------------------------------------------------

    async def startup(self) -> None:
        """Begins to connect; there need be no supervisor yet. May be called again, see QueueBroker.

        Raises UnsuitableBrokerError for what is not safe, KeyFileError for keys it cannot read.
        """
        await super().startup()

    async def kick(self, message: "BrokerMessage") -> None:
        """Returns when the queue has accepted the task; until then waits, whatever comes between.

        Raises InvalidLabelError, QueueFullError or ListenerUnreachableError after `kiq_timeout`,
        MessageTooLargeError, MessageRefusedError, ConnectionDeniedError, BrokerNotStartedError.
        """
        attachment = await self.attached()
        if attachment is None:
            raise BrokerNotStartedError(queue=self.name, reason=self.why_not_started())
        if isinstance(attachment, FeedUse):
            await attachment.feed.kick(message)
            self._newest_ticket = attachment.feed.ticket_of(message.task_id)
            return
        schedule = Schedule.of(message.labels, time.time())
        timeout = self.kiq_timeout if schedule.kiq_timeout is None else schedule.kiq_timeout
        put = Put(
            0,
            message.task_id,
            message.message,
            buffers_of(message.message),
            priority=schedule.priority,
            due=schedule.due,
            expires=schedule.expires,
            max_deliveries=schedule.max_deliveries or self.max_deliveries,
        )
        self._newest_ticket = await self._put(
            attachment, put, None if timeout == math.inf else timeout, message
        )

    async def _put(
        self,
        connection: Connection,
        put: Put,
        timeout: float | None,
        message: "BrokerMessage",
    ) -> Any:
        """Its ticket, with the connection's exceptions as users know them."""
        try:
            return await connection.put(put, timeout)
        except NotAccepted as error:
            if error.connected:
                raise QueueFullError(queue=self.name, timeout=timeout, reason=str(error)) from None
            raise ListenerUnreachableError(
                endpoint=self.name, timeout=timeout, reason=str(error), may_run=error.may_be
            ) from None
        except PutRefused as error:
            if error.code == Code.TOO_LARGE:
                raise MessageTooLargeError(
                    task=message.task_name, size=size_of(message.message), reason=str(error)
                ) from None
            raise MessageRefusedError(
                endpoint=self.name, task=message.task_name, reason=str(error)
            ) from None
        except ConnectionRefused as error:
            raise ConnectionDeniedError(
                endpoint=self.name, reason=str(error), may_run=error.may_be
            ) from None
        except ConnectionClosed as error:
            raise BrokerNotStartedError(
                queue=self.name, reason=str(error), may_run=error.may_be
            ) from None

    async def connection(self) -> Connection | None:
        """A client's, on the running loop; None where the broker is not started."""
        attachment = await self.attached()
        return attachment if isinstance(attachment, Connection) else None

    async def _attach(self, *, is_main: bool) -> Connection | FeedUse:
        if self.feed is not None:
            await self.feed.startup()
            return FeedUse(self.feed)
        if self.is_worker_process:
            raise self._not_supervised()
        connection = Connection(self._where())
        try:
            connection.start()
        except zmq.ZMQError as error:
            raise UnsuitableBrokerError(
                broker=CLASS, reason=f"cannot connect to {self.name}: {error}"
            ) from None
        return connection

    def _where(self) -> Where:
        has_keys = self._server_public_key is not None
        endpoint = to_connect(self._connect, secured=has_keys or self.insecure)
        check_pickle(self.serializer, endpoint, trusted=has_keys)
        if self._server_public_key is None:
            return Where(endpoint)
        server = load_public(self._server_public_key)
        if self._client_secret_key is None:
            return Where(endpoint, server, KeyPair.new())
        for line in _readable(self._client_secret_key):
            logger.warning("%s", line)
        return Where(endpoint, server, KeyPair.load(self._client_secret_key))

    def _new_results(self) -> ZeroMQResultBackend[Any]:
        return ZeroMQResultBackend()

    def _not_supervised(self) -> UnsuitableBrokerError:
        return UnsuitableBrokerError(
            broker=CLASS,
            reason="its tasks are taken by the workers of taskiq-supervise only; start them with "
            "`taskiq-supervise module:broker` instead of `taskiq worker module:broker`",
        )


def _readable(path: "File") -> list[str]:
    if may_be_read_by_others(path):
        return [f"the secret key {path} can be read by others; chmod 600 {path}"]
    return []

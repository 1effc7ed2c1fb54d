"""A server on the test's loop with a queue that does what the test says, and clients made of bare
sockets, so that they can do what ours would not."""

import asyncio
import errno
import os
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from taskiq.depends.progress_tracker import TaskProgress
from zmq.utils import garbage

from taskiq_supervise.broker.zeromq import protocol
from taskiq_supervise.broker.zeromq.keys import KeyPair
from taskiq_supervise.broker.zeromq.protocol import Accepted, FromListener, Hello, Put, Welcome
from taskiq_supervise.broker.zeromq.settings import ListenerSettings
from taskiq_supervise.ipc import Outcome, OutcomeKind, Ticket, UnknownTask
from taskiq_supervise.worker.listener.gate import Limits
from taskiq_supervise.worker.listener.intake import Ending, Incoming
from taskiq_supervise.worker.listener.server import Server

PATIENCE = 20.0
QUIET = 0.2
"""Seconds in which an answer that must not come would have come."""


class ToyQueue:
    """An intake in memory, that has room as long as the test says so."""

    def __init__(self) -> None:
        self.accepted: list[tuple[bytes, int, str, bytes]] = []
        self.buffers: list[tuple[bytes, ...]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.said: dict[str, TaskProgress[Any]] = {}
        self.waiting: list[str] = []
        """Ids of the tasks whose outcome is waited for."""
        self.looks = 0
        self.unreadable = 0
        """So many looks fail for want of descriptors."""
        self.has_room = True
        self.blocked: set[str] = set()
        """Ids for which there is no room in any case."""
        self.refuse: dict[str, Exception] = {}
        """Raised for these ids, once."""
        self.trying: list[str] = []
        """Ids that wait for room."""
        self._last: dict[bytes, int] = defaultdict(int)
        self._changed: set[asyncio.Event] = set()

    @property
    def numbers(self) -> list[int]:
        return [number for _, number, _, _ in self.accepted]

    def make_room(self) -> None:
        self.has_room = True
        self.blocked.clear()
        self._change()

    def end(self, task_id: str, data: bytes = b"", *buffers: bytes) -> None:
        views = tuple(memoryview(buffer) for buffer in buffers)
        self.outcomes[task_id] = Outcome(task_id, OutcomeKind.RESULT, data, 1, buffers=views)
        self._change()

    def _change(self) -> None:
        for event in self._changed:
            event.set()

    def last_from(self, sender: bytes) -> int:
        return self._last[sender]

    async def accept(
        self, message: Incoming, sender: tuple[bytes, int] | None = None
    ) -> Ticket | None:
        assert sender is not None
        if message.task_id in self.refuse:
            raise self.refuse.pop(message.task_id)
        await self._changing(message.task_id, self.trying, lambda: self._room(message.task_id))
        client, number = sender
        if number <= self._last[client]:
            return None
        self._last[client] = number
        self.accepted.append((client, number, message.task_id, bytes(message.payload)))
        self.buffers.append(tuple(bytes(buffer) for buffer in message.buffers))
        return Ticket(len(self.accepted), 1, message.task_id)

    def _room(self, task_id: str) -> bool | None:
        return True if self.has_room and task_id not in self.blocked else None

    async def wait(self, target: str | Ticket) -> Outcome:
        task_id = target if isinstance(target, str) else target.task_id
        outcome: Outcome = await self._changing(task_id, self.waiting, lambda: self.look(target))
        return outcome

    async def _changing(self, task_id: str, who: list[str], look: Callable[[], Any]) -> Any:
        found = look()
        if found is not None:
            return found
        event = asyncio.Event()
        self._changed.add(event)
        who.append(task_id)
        try:
            while found is None:
                await event.wait()
                event.clear()
                found = look()
        finally:
            self._changed.discard(event)
            who.remove(task_id)
        return found

    def look(self, target: str | Ticket) -> Outcome | None:
        task_id = target if isinstance(target, str) else target.task_id
        if task_id.startswith("unknown"):
            raise UnknownTask(f"no task {task_id!r}")
        self.looks += 1
        if self.unreadable:
            self.unreadable -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self.outcomes.get(task_id)

    def progress(self, task_id: str) -> TaskProgress[Any] | None:
        return self.said.get(task_id)

    async def acknowledged(self, target: str | Ticket) -> None:
        await self.wait(target)

    def endings(self) -> list[Ending]:
        return []

    def settle(self, ending: Ending) -> None:
        raise AssertionError(f"a server settles nothing: {ending}")

    async def close(self) -> None:
        self.accepted.clear()


class Client:
    """A client that does what it is told, one connection at a time."""

    def __init__(
        self,
        endpoint: str,
        context: zmq.asyncio.Context,
        *,
        id: bytes | None = None,
        **options: Any,
    ) -> None:
        self.id = os.urandom(16) if id is None else id
        self._endpoint = endpoint
        self._context = context
        self._options = options
        self.connect()

    def connect(self) -> None:
        self._heard: deque[FromListener] = deque()
        socket = self._socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.ipv6 = True
        for name, value in self._options.items():
            setattr(socket, name, value)
        socket.connect(self._endpoint)

    def reconnect(self) -> None:
        self.close()
        self.connect()

    def close(self) -> None:
        self._socket.close()

    async def say(self, message: protocol.FromClient, flags: int = 0) -> None:
        await self.send(protocol.encode_from_client(message), flags)

    async def send(self, frames: Any, flags: int = 0) -> None:
        await asyncio.wait_for(self._socket.send_multipart(frames, flags), PATIENCE)

    async def hear(self) -> FromListener:
        """The next message that is not merely a sign of life; of several answers, the next."""
        while not self._heard:
            message = await self.hear_one()
            if isinstance(message, protocol.AllAccepted):
                self._heard.extend(message.answers)
            elif not isinstance(message, protocol.Alive):
                self._heard.append(message)
        return self._heard.popleft()

    async def hear_one(self) -> FromListener:
        """The next message as it is."""
        frames = await asyncio.wait_for(self._socket.recv_multipart(), PATIENCE)
        return protocol.decode_from_listener(frames)

    async def hear_alive(self) -> None:
        frames = await asyncio.wait_for(self._socket.recv_multipart(), PATIENCE)
        assert protocol.decode_from_listener(frames) == protocol.Alive()

    async def hears_nothing(self) -> None:
        """For as long as it would take, were there something."""
        assert not self._heard
        assert not await self._socket.poll(int(QUIET * 1000))

    async def hello(self) -> Welcome:
        await self.say(Hello(self.id, os.getpid(), "test"))
        answer = await self.hear()
        assert isinstance(answer, Welcome), answer
        return answer

    async def put(self, number: int, task_id: str | None = None, data: bytes = b"data") -> None:
        await self.say(Put(number, task_id or f"task {number}", data))

    async def accepted(self) -> Accepted:
        answer = await self.hear()
        assert isinstance(answer, Accepted), answer
        return answer

    async def is_served(self) -> None:
        """It says hello, and a task of its own is taken."""
        last = (await self.hello()).last
        await self.put(last + 1)
        assert (await self.accepted()).number == last + 1


@pytest.fixture(scope="module", autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """pyzmq keeps one, with descriptors, for what is sent without being copied."""
    yield
    garbage.gc.stop()


@pytest.fixture
def queue() -> ToyQueue:
    return ToyQueue()


LIMITS = Limits(heartbeat=60)
"""Those of the tests: none of them lives long enough for a heartbeat."""

TCP = ListenerSettings(
    bind="tcp://127.0.0.1:*",
    is_ipv6=False,
    notes=(),
    server_keys=None,
    clients=None,
    max_message=8 << 20,
    max_deliveries=0,
    result_ttl=None,
)


def ipc(path: Path) -> ListenerSettings:
    return replace(TCP, bind=f"ipc://{path}")


def with_keys(keys: KeyPair, clients: Any) -> ListenerSettings:
    return replace(TCP, server_keys=keys, clients=clients)


@asynccontextmanager
async def served(server: Server) -> AsyncIterator[Server]:
    """The server serves until the end of the block; that it failed is an error."""
    server.bind()
    serving = asyncio.ensure_future(server.serve())
    try:
        yield server
    finally:
        await server.close()
        await serving


Serve = Callable[..., AbstractAsyncContextManager[Server]]


@pytest.fixture
async def serve(queue: ToyQueue) -> Serve:
    """Makes a server for the queue, and serves."""

    def start(settings: ListenerSettings = TCP, limits: Limits = LIMITS) -> Any:
        return served(Server(settings, queue, limits))

    return start


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Server]:
    async with serve() as server:
        yield server


Connect = Callable[..., Client]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients; theirs is another context than the server's."""
    context = zmq.asyncio.Context()
    clients: list[Client] = []

    def start(server: Server | str, **options: Any) -> Client:
        endpoint = server if isinstance(server, str) else server.endpoint
        client = Client(endpoint, context, **options)
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.close()
    context.term()


async def until(condition: Callable[[], bool]) -> None:
    """One turn of the loop after the other."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "that does not happen"
        await asyncio.sleep(0.001)

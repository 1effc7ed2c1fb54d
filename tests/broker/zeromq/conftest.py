"""A listener that does what the test says, and a client's broker that knows only its address."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq
from taskiq import BrokerMessage
from zmq.utils import garbage

from taskiq_supervise.broker.zeromq import ZeroMQBroker
from taskiq_supervise.broker.zeromq.keys import KeyPair
from taskiq_supervise.broker.zeromq.protocol import (
    Accepted,
    Alive,
    Batch,
    Ended,
    FromClient,
    FromListener,
    Hello,
    Put,
    Wait,
    Welcome,
    decode_from_client,
    encode_from_listener,
)
from taskiq_supervise.broker.zeromq.wire import Wire
from taskiq_supervise.ipc import Outcome, OutcomeKind

_Message = TypeVar("_Message", bound=FromClient)

PATIENCE = 10.0


class Scripted:
    """A ROUTER on the test's loop. It records what it hears and answers what it is told to.

    Attributes:
        heard: every message but signs of life, with the connection it came over; of a batch, each.
        batches: how many tasks were in each.
        answers: what is said to a message of this type; nothing for others.
    """

    def __init__(self, endpoint: str, keys: KeyPair | None = None) -> None:
        self.endpoint = endpoint
        self.heard: list[tuple[bytes, FromClient]] = []
        self.alive = 0
        self.batches: list[int] = []
        self.answers: dict[type, Callable[[Any], Sequence[FromListener]]] = {}
        self.keys = keys
        self._news = asyncio.Condition()
        self._context = zmq.Context()
        self._wire: Wire | None = None

    @property
    def route(self) -> bytes:
        """Of the newest connection."""
        return [route for route, message in self.heard if isinstance(message, Hello)][-1]

    def open(self) -> None:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, "[" in self.endpoint)
        if self.keys is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)
        socket.bind(self.endpoint)
        self._wire = Wire(socket, self._on_frames)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def end(self) -> None:
        self.close()
        self._context.term()

    def say(self, message: FromListener, route: bytes | None = None) -> None:
        self.say_frames(encode_from_listener(message), route)

    def say_frames(self, frames: Sequence[Any], route: bytes | None = None) -> None:
        assert self._wire is not None
        self._wire.send([self.route if route is None else route, *frames])

    def of(self, kind: type[_Message]) -> list[_Message]:
        return [message for _, message in self.heard if isinstance(message, kind)]

    async def until(self, kind: type[_Message], count: int = 1) -> list[_Message]:
        """Waits until so many messages of this type were heard in all."""
        async with self._news:
            await asyncio.wait_for(
                self._news.wait_for(lambda: len(self.of(kind)) >= count), PATIENCE
            )
        return self.of(kind)

    def _on_frames(self, frames: list[memoryview]) -> None:
        route, message = bytes(frames[0]), decode_from_client(frames[1:])
        if isinstance(message, Batch):
            self.batches.append(len(message.puts))
        for one in message.puts if isinstance(message, Batch) else (message,):
            if isinstance(one, Alive):
                self.alive += 1
            else:
                self.heard.append((route, one))
            for answer in self.answers.get(type(one), lambda _: ())(one):
                self.say(answer, route)
        asyncio.ensure_future(self._tell())  # noqa: RUF006 - ends in this turn of the loop

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


def welcome(last: int = 0, **fields: Any) -> Welcome:
    values: dict[str, Any] = {
        "window": 100,
        "window_bytes": 2**26,
        "max_message": 2**30,
        "heartbeat": 5.0,
    }
    return Welcome("scripted", last, **{**values, **fields})


def accepted(put: Put) -> list[Accepted]:
    return [Accepted(put.number, put.number, 7)]


def ended(wait: Wait, kind: OutcomeKind = OutcomeKind.NO_RESULT) -> Ended:
    target = wait.target
    return Ended(wait.request, Outcome(target if isinstance(target, str) else target.task_id, kind))


def message(task_id: str, data: bytes = b"xyz", **labels: Any) -> BrokerMessage:
    return BrokerMessage(task_id=task_id, task_name="t", message=data, labels=labels)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/socket"


@pytest.fixture
async def listener(endpoint: str) -> AsyncIterator[Scripted]:
    """Open, and welcoming; whoever wants it otherwise says so."""
    scripted = Scripted(endpoint)
    scripted.answers[Hello] = lambda _: [welcome()]
    scripted.open()
    yield scripted
    scripted.end()
    garbage.gc.stop()


@pytest.fixture
async def broker(endpoint: str) -> AsyncIterator[ZeroMQBroker]:
    """A client's, not started."""
    broker = ZeroMQBroker(endpoint)
    yield broker
    await broker.shutdown()

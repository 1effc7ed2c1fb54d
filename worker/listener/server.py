"""Our server: the ROUTER that the clients of ZeroMQBroker connect to.

Each connection says who it is, and then belongs to that client's session. Messages of one client
go into the queue in order, and at the pace of the queue; those of others do not wait for them, and
outcomes flow meanwhile. A client that does what it may not is told so and forgotten. Nobody is
waited for: who does not read gets what he asked for when he has read what came before, or comes
again.
"""

import asyncio
import logging
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

import zmq

from taskiq_supervise.broker.zeromq.protocol import (
    Alive,
    AskProgress,
    Batch,
    Bye,
    Cancel,
    Code,
    Denied,
    FromClient,
    FromListener,
    Heard,
    Hello,
    Look,
    ProtocolError,
    Put,
    Refused,
    TakeBack,
    Wait,
    Welcome,
    WhoAreYou,
    decode_from_client,
    encode_from_listener,
    number_of_put,
)
from taskiq_supervise.ipc import SegmentError
from taskiq_supervise.worker.listener.gate import Limits, Promises, own_memory
from taskiq_supervise.worker.listener.router import Router, Sent
from taskiq_supervise.worker.listener.session import FloodError, Session

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from taskiq_supervise.broker.zeromq.settings import ListenerSettings
    from taskiq_supervise.worker.listener.intake import Intake

logger = logging.getLogger("taskiq_supervise.listener")

RETRY = 0.02
"""Seconds until an outcome is sent again that its client had no room for."""
MAX_STRANGERS = 4096
"""Connections that nobody knows and that are told so, each once per heartbeat."""
MOST_COMPLAINTS = 10
"""Lines that clients can cause in the log, per heartbeat."""


class ServerError(Exception):
    """The server cannot go on; another process can."""


class Server:
    """One listener's server, on the running loop.

    Attributes:
        received: messages that the queue has newly taken.
    """

    def __init__(
        self, settings: "ListenerSettings", intake: "Intake", limits: Limits | None = None
    ) -> None:
        self.intake = intake
        self.limits = limits or Limits()
        self.waits = 0
        self.received = 0
        self._max_message = settings.max_message
        self._loop = asyncio.get_running_loop()
        self._router = Router(settings, self.limits, self._receive, self.fail)
        self._name = f"{os.uname().nodename}:{os.getpid()}"
        self._promises = Promises(self.limits)
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        """By client id; who has been silent for longest comes first."""
        self._by_route: dict[bytes, Session] = {}
        self._strangers: set[bytes] = set()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._beating: asyncio.TimerHandle | None = None
        self._retrying: asyncio.TimerHandle | None = None
        self._draining = False
        self._complaints = 0
        """Since the last heartbeat."""

    def bind(self) -> None:
        """Raises OSError. Clients may connect from now on; they are served by serve()."""
        self._router.bind()

    @property
    def endpoint(self) -> str:
        """Where it is bound."""
        return self._router.endpoint

    @property
    def sessions(self) -> int:
        """Clients that are known."""
        return len(self._sessions)

    @property
    def connections(self) -> int:
        """Connections that belong to one of them."""
        return len(self._by_route)

    async def serve(self) -> None:
        """Until close(). Raises SegmentError, ZMQError or ServerError when it cannot go on."""
        self._router.start()
        self._beat_later()
        await asyncio.shield(self._ended)

    async def drain(self, timeout: float = 1.0) -> None:
        """Takes no more puts, and says so; returns when those it has are done, or after `timeout`.

        Outcomes are sent until close(). What the queue has not taken by then, its client sends to
        the next listener.
        """
        self._draining = True
        for session in list(self._sessions.values()):
            session.tell(Bye())
        puts = [asyncio.ensure_future(session.end_puts()) for session in self._sessions.values()]
        if puts:
            _, waiting = await asyncio.wait(puts, timeout=timeout)
            for put in waiting:
                put.cancel()

    async def close(self) -> None:
        """Says the last and leaves; returns when the address is free for another server."""
        for timer in (self._beating, self._retrying):
            if timer is not None:
                timer.cancel()
        self._draining = True
        puts = []
        for session in list(self._sessions.values()):
            session.tell(Bye())
            session.disconnect()
            puts.append(asyncio.ensure_future(session.end_puts()))
        self._sessions.clear()
        if puts:
            await asyncio.wait(puts)
        await self._router.close()
        if not self._ended.done():
            self._ended.set_result(None)

    # --- what comes in -----------------------------------------------------------------------

    def _receive(self, route: bytes, frames: "list[Buffer]", size: int, complete: bool) -> None:
        try:
            message = self._decode(frames, complete)
            session = self._by_route.get(route)
            if type(message) is Hello:
                self._welcome(route, message)
            elif session is None:
                if type(message) is not Bye:
                    self._answer_stranger(route, WhoAreYou())
            elif message is None:
                self._refuse_too_large(session, frames)
            else:
                self._sessions.move_to_end(session.client)
                session.heard = self._loop.time()
                self._serve(session, message, frames, size)
        except ProtocolError as error:
            self._deny(route, Code.VERSION if error.is_version else Code.MALFORMED, str(error))
        except FloodError as error:
            self._deny(route, Code.FLOOD, str(error))
        except SegmentError as error:
            self.fail(error)
        except Exception:
            # One message must not end the service of all; what it was is in the traceback.
            self._complaints += 1
            if self._complaints <= MOST_COMPLAINTS:
                logger.exception("A message of a client could not be handled")
            self._deny(route, Code.MALFORMED, "the message could not be handled")

    def _decode(self, frames: "list[Buffer]", complete: bool) -> FromClient | None:
        """None: a put of which only the beginning was kept. Raises ProtocolError."""
        if complete:
            return decode_from_client(frames)
        number_of_put(frames[0])  # anything else has no need to be so large
        return None

    def _serve(
        self, session: Session, message: FromClient, frames: "list[Buffer]", size: int
    ) -> None:
        match message:
            case Put() | Batch() if self._draining:
                session.tell(Bye())
            case Batch(puts):
                for put, frame in zip(puts, frames[1:], strict=True):
                    session.put(put, memoryview(frame).nbytes)
            case Put():
                session.put(message, size)
            case Wait():
                session.wait(message)
            case Look(request, target):
                session.look(request, target)
            case TakeBack(number):
                session.take_back(number)
            case Heard(number):
                session.heard_of(number)
            case Cancel(request):
                session.cancel(request)
            case AskProgress(request, task_id):
                session.progress(request, task_id)
            case Alive():
                session.tell(Alive())
            case Bye():
                self._forget(session)

    def _refuse_too_large(self, session: Session, frames: "list[Buffer]") -> None:
        text = f"the message has more than {self._max_message} bytes, or too many buffers"
        session.refuse(Refused(number_of_put(frames[0]), Code.TOO_LARGE, text))

    def _welcome(self, route: bytes, hello: Hello) -> None:
        if self._draining:
            self._send(route, encode_from_listener(Bye()))
            return
        other = self._by_route.get(route)
        if other is not None and other.client != hello.client:
            self._forget(other)  # a connection is one client's
        session = self._sessions.get(hello.client)
        if session is None:
            if len(self._sessions) >= self.limits.clients and not self._forget_an_idle_one():
                text = f"{self.limits.clients} clients are connected already"
                self._send(route, encode_from_listener(Denied(Code.FULL, text)))
                return
            session = Session(self, hello.client, self._promises.make(), self._loop.time())
            self._sessions[hello.client] = session
        last = session.connect(route)
        session.heard = self._loop.time()
        self._sessions.move_to_end(hello.client)
        self._by_route[route] = session
        self._strangers.discard(route)
        limits = self.limits
        session.tell(
            Welcome(
                server=self._name,
                last=last,
                window=limits.window,
                window_bytes=session.window_bytes,
                max_message=self._max_message,
                heartbeat=limits.heartbeat,
            )
        )

    def _answer_stranger(self, route: bytes, message: FromListener) -> None:
        """Once per heartbeat: who sends without listening shall cost little."""
        if route in self._strangers or len(self._strangers) >= MAX_STRANGERS:
            return
        # One that has no room for it hears it when it speaks again.
        if self._send(route, encode_from_listener(message)) is Sent.YES:
            self._strangers.add(route)

    def _deny(self, route: bytes, code: str, text: str) -> None:
        session = self._by_route.get(route)
        if session is not None:
            self.complain(f"Client {session.client.hex()[:8]} is refused: {text}")
            self._forget(session)
        self._answer_stranger(route, Denied(code, text))

    # --- sessions ----------------------------------------------------------------------------

    def _forget(self, session: Session) -> None:
        session.disconnect()
        del self._sessions[session.client]
        self._promises.end(session.window_bytes)

    def _forget_an_idle_one(self) -> bool:
        """Makes room: for one that has said nothing for a heartbeat, and has nothing to do here."""
        recent = self._loop.time() - self.limits.heartbeat
        for session in self._sessions.values():
            if session.heard > recent:
                return False
            if not session.is_busy:
                self._forget(session)
                return True
        return False

    def _beat_later(self) -> None:
        due = self._loop.time() + self.limits.heartbeat
        self._beating = self._loop.call_at(due, self._beat, due)

    def _beat(self, due: float) -> None:
        self._beat_later()
        limits, now = self.limits, self._loop.time()
        # Late ourselves (stopped, a busy machine), we have not listened.
        is_late = now - due > limits.heartbeat
        silent = now - limits.silence
        for session in list(self._sessions.values()):
            if is_late:
                session.heard = now
            if session.heard < silent:
                self._forget(session)
            elif session.route is not None and not session.spoken:
                session.tell(Alive())
            session.spoken = False
        if self._complaints > MOST_COMPLAINTS:
            logger.warning("%d more lines like these", self._complaints - MOST_COMPLAINTS)
        self._complaints = 0
        self._strangers.clear()
        self._router.tidy()
        if own_memory() > limits.memory:
            text = f"the listener's memory has grown beyond {limits.memory} bytes"
            self.fail(ServerError(f"{text}; messages that it was sent are sent again"))

    # --- what sessions ask -------------------------------------------------------------------

    def post(self, session: Session, frames: "list[Buffer]") -> Sent:
        return Sent.GONE if session.route is None else self._send(session.route, frames)

    def _send(self, route: bytes, frames: "list[Buffer]") -> Sent:
        try:
            return self._router.send(route, frames)
        except zmq.ZMQError as error:
            self.fail(error)
            return Sent.GONE

    def left(self, route: bytes) -> None:
        self._by_route.pop(route, None)

    def accepted(self) -> None:
        self.received += 1

    def fail(self, error: BaseException) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def complain(self, text: str) -> None:
        self._complaints += 1
        if self._complaints <= MOST_COMPLAINTS:
            logger.warning("%s", text)

    def retry_soon(self) -> None:
        if self._retrying is None:
            self._retrying = self._loop.call_later(RETRY, self._retry)

    def _retry(self) -> None:
        self._retrying = None
        for session in list(self._sessions.values()):
            session.retry()

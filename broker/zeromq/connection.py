"""A client's connection to the listener, on one event loop.

It may begin before there is a listener and outlives as many as come and go. Each connection is a
new DEALER, so that nothing of an old one can arrive late; what was not answered is said again over
the next, see `outbox` and `questions`. ZeroMQ's monitor tells at once of a connection that ended;
heartbeats find the one whose other side hangs or is cut off.
"""

import asyncio
import itertools
import logging
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import parse_monitor_message

from taskiq_supervise.broker.zeromq.outbox import Outbox, Outgoing
from taskiq_supervise.broker.zeromq.protocol import (
    Accepted,
    Alive,
    AllAccepted,
    Bye,
    Code,
    Denied,
    Ended,
    Failed,
    FromListener,
    Heard,
    Hello,
    Progress,
    ProtocolError,
    Refused,
    Welcome,
    WhoAreYou,
    batched,
    decode_from_listener,
    encode_from_client,
    new_client_id,
)
from taskiq_supervise.broker.zeromq.questions import Answer, Question, Questions
from taskiq_supervise.broker.zeromq.wire import Wire

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from taskiq_supervise.broker.zeromq.addresses import Endpoint
    from taskiq_supervise.broker.zeromq.keys import KeyPair
    from taskiq_supervise.broker.zeromq.protocol import Put
    from taskiq_supervise.ipc import Ticket

logger = logging.getLogger("taskiq_supervise.broker")

LINGER = 0.1
"""Seconds that a goodbye has to get out; nothing else is under way by then."""
TAKE_BACK_PATIENCE = 1.0
"""Seconds that the listener has to say whether a message that is taken back was accepted."""
HELLO_PATIENCE = 5.0
"""Seconds that a listener has for its welcome, and ZeroMQ for its handshakes."""
MOST_AT_ONCE = 65_536
"""Bytes of tasks that are sent as one message."""
SILENCES = 3
"""Heartbeats without a word after which a connection is given up."""

_BATCH_HEAD = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_MECHANISM_MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
_EVENTS = (
    zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.DISCONNECTED
)
_monitors = itertools.count()


@dataclass(frozen=True)
class Where:
    """Whom to connect to, and how. server: its public key; keys: our own pair, with CURVE both."""

    endpoint: "Endpoint"
    server: bytes | None = None
    keys: "KeyPair | None" = None


class NotAccepted(Exception):
    """A message was not accepted in time.

    Attributes:
        connected: a listener was there, so it is the queue that had no room.
        may_be: the listener may have accepted it, and can't be asked.
    """

    def __init__(self, reason: str, *, connected: bool, may_be: bool) -> None:
        super().__init__(reason)
        self.connected = connected
        self.may_be = may_be


class NoConnection(Exception):
    """There will be none for this message or question.

    Attributes:
        may_be: the listener may have accepted the message, and can't be asked.
    """

    def __init__(self, reason: str, *, may_be: bool = False) -> None:
        super().__init__(reason)
        self.may_be = may_be


class ConnectionRefused(NoConnection):
    """There is a listener, and it does not talk with us; waiting does not help."""


class ConnectionClosed(NoConnection):
    """The broker was shut down meanwhile."""


class Connection:
    """What one event loop of a client has of the broker."""

    def __init__(self, where: Where) -> None:
        self.loop = asyncio.get_running_loop()
        self._where = where
        self._client = new_client_id()
        self._outbox = Outbox(self._send_put)
        self._questions = Questions(self._send)
        self._context = zmq.Context()  # here and not earlier: no fork survives it
        self._wire: Wire | None = None
        self._monitor: Wire | None = None
        self._welcome: Welcome | None = None
        self._timer: asyncio.TimerHandle | None = None
        """For what comes next: a welcome, a heartbeat, or the next attempt to connect."""
        self._pause = _FIRST_PAUSE
        self._spoke = self._heard = 0.0
        self._batch: list[Buffer] = []
        """Tasks that are sent in the next turn of the loop, and their bytes."""
        self._batch_size = 0
        self._refusal = ""
        self._closed = False
        self.problem = f"nobody listens on {where.endpoint}; is the supervisor running?"
        """Why there is no connection, for people."""

    def start(self) -> None:
        """Returns before there is a connection. Raises zmq.ZMQError for an unusable address."""
        try:
            self._open()
        except BaseException:
            self._shut()
            self._context.term()
            raise

    @property
    def is_connected(self) -> bool:
        return self._welcome is not None

    async def put(self, put: "Put", timeout: float | None = None) -> "Ticket | None":
        """Waits until the queue has accepted the message, whatever comes between.

        timeout: seconds. None as the ticket: it is accepted, and where it is was lost on the way.
        Raises NotAccepted, PutRefused, ConnectionRefused, ConnectionClosed. Cancelled, the message
        is taken back if that is still possible.
        """
        self._check()
        message = Outgoing(put)
        self._outbox.add(message)
        try:
            if timeout is None:
                return await message.accepted
            done, _ = await asyncio.wait([message.accepted], timeout=timeout)
            if done:
                return message.accepted.result()
        except asyncio.CancelledError:
            self._outbox.give_up(message)
            raise
        return await self._give_up(message)

    async def _give_up(self, message: Outgoing) -> "Ticket | None":
        """What became of a message that is not wanted any more. Raises as `put()`."""
        connected = self.is_connected
        may_be = self._outbox.give_up(message)
        if may_be and connected:
            await asyncio.wait([message.accepted], timeout=TAKE_BACK_PATIENCE)
            if message.accepted.done():
                error = message.accepted.exception()
                if error is None:
                    return message.accepted.result()
                if getattr(error, "code", None) != Code.TAKEN_BACK:
                    raise error
                may_be = False
            else:
                connected = False
        message.accepted.cancel()
        if connected:
            reason = "it did not accept the task; start more workers"
        else:
            reason = self.problem or "it does not answer"
        raise NotAccepted(reason, connected=connected, may_be=may_be)

    async def ask(
        self, question: Callable[[int], Question], timeout: float | None = None
    ) -> Answer:
        """Waits for the answer to what `question` makes of a number.

        Raises TimeoutError (asyncio's), ConnectionRefused, ConnectionClosed.
        """
        self._check()
        return await asyncio.wait_for(self._questions.ask(question), timeout)

    async def close(self) -> None:
        """Ends it, at once and for all who wait."""
        self._closed = True
        if self.loop.is_closed():
            self._shut()
        else:
            self._fail(ConnectionClosed, "the broker was shut down")
            linger = 0.0
            if self._welcome is not None:
                self._send(encode_from_client(Bye()))
                linger = LINGER
            self._shut(linger)
        self._context.term()

    # --- coming and going ------------------------------------------------------------------------

    def _open(self) -> None:
        where = self._where
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)  # the window bounds it
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, round(HELLO_PATIENCE * 1000))
        socket.setsockopt(zmq.HANDSHAKE_IVL, round(HELLO_PATIENCE * 1000))
        socket.setsockopt(zmq.IPV6, where.endpoint.is_ipv6)
        if where.server is not None and where.keys is not None:
            socket.setsockopt(zmq.CURVE_SERVERKEY, where.server)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, where.keys.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, where.keys.secret)
        self._monitor = self._watch(socket)
        self._wire = Wire(socket, self._on_frames)
        socket.connect(str(where.endpoint))
        self._say_hello()

    def _watch(self, socket: "zmq.Socket[bytes]") -> Wire:
        """Reads what ZeroMQ tells of the socket's connections."""
        address = f"inproc://monitor-{next(_monitors)}"
        socket.monitor(address, int(_EVENTS))
        monitor = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.LINGER, 0)
        monitor.connect(address)
        return Wire(monitor, self._on_event)

    def _shut(self, linger: float = 0.0) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wire, monitor = self._wire, self._monitor
        self._wire = self._monitor = self._welcome = None
        self._batch = []  # the outbox has them
        if wire is not None and not wire.socket.closed:
            wire.socket.disable_monitor()
            wire.close(linger)
        if monitor is not None:
            monitor.close()

    def _say_hello(self) -> None:
        agent = f"taskiq-supervise pid {os.getpid()}"
        self._send(encode_from_client(Hello(self._client, os.getpid(), agent)))

    def _lost(self, problem: str, *, pause: bool = True) -> None:
        """This connection is no good any more. pause: nor may the next be, at once."""
        if self._welcome is not None:
            logger.warning("The connection to %s is lost: %s", self._where.endpoint, problem)
        self.problem = problem
        self._shut()
        self._outbox.lost()
        self._questions.lost()
        if not pause:
            self._open()
            return
        self._timer = self.loop.call_later(self._pause * random.uniform(0.5, 1.0), self._open)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _refuse(self, reason: str) -> None:
        """Nobody need wait for that; but tried again it is, should it be put right meanwhile."""
        if reason != self._refusal:
            logger.error("%s refuses this client: %s", self._where.endpoint, reason)
        self._refusal = reason
        self._fail(ConnectionRefused, reason)
        self._lost(reason)

    def _check(self) -> None:
        if self._closed:
            raise ConnectionClosed("the broker was shut down")
        if self._refusal:
            raise ConnectionRefused(self._refusal)

    def _fail(self, error: type[NoConnection], reason: str) -> None:
        self._batch = []
        self._outbox.fail(lambda may_be: error(reason, may_be=may_be))
        self._questions.fail(lambda: error(reason))

    # --- what is said and heard ------------------------------------------------------------------

    def _send(self, frames: "Sequence[Buffer]") -> None:
        """Without a connection nothing is sent; what matters is said again over the next."""
        if self._batch:
            self._send_batch()
        if self._wire is None:
            return
        self._spoke = self.loop.time()
        try:
            self._wire.send(frames)
        except zmq.ZMQError as error:
            self.loop.call_soon(self._lost_wire, self._wire, str(error))

    def _send_put(self, frames: "Sequence[Buffer]") -> None:
        """Small ones with those of the same turn: ZeroMQ's thread is woken once for all of them."""
        if len(frames) > 1 or self._welcome is None:
            self._send(frames)
            return
        size = memoryview(frames[0]).nbytes
        if not self._batch:
            self._batch_size = _BATCH_HEAD
            self.loop.call_soon(self._send_batch)
        elif self._batch_size + size > min(MOST_AT_ONCE, self._welcome.max_message):
            self._send_batch()
            self._batch_size = _BATCH_HEAD
        self._batch.append(frames[0])
        self._batch_size += size

    def _send_batch(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self._send(batch if len(batch) == 1 else batched(batch))

    def _lost_wire(self, wire: Wire, problem: str) -> None:
        if wire is self._wire:
            self._lost(problem)

    def _on_event(self, frames: list[memoryview]) -> None:
        event = parse_monitor_message([frame.tobytes() for frame in frames])
        kind, value = event["event"], event["value"]
        if kind == zmq.Event.HANDSHAKE_SUCCEEDED:
            if self._welcome is None:
                self._await_welcome()
        elif kind == zmq.Event.CONNECT_RETRIED:
            self.problem = f"nobody listens on {self._where.endpoint}; is the supervisor running?"
        elif kind == zmq.Event.DISCONNECTED:
            if self._welcome is not None:
                self._lost("the listener has closed it", pause=False)
            else:
                self._lost(f"{self._where.endpoint} closes new connections; {_CURVE}")
        elif kind == zmq.Event.HANDSHAKE_FAILED_AUTH:
            self._refuse("the listener does not know this client's key (client_keys)")
        elif kind == zmq.Event.HANDSHAKE_FAILED_PROTOCOL and value == _MECHANISM_MISMATCH:
            self._refuse("one side has keys and the other has none, or it has another kind")
        else:
            self._lost(f"the handshake with {self._where.endpoint} failed; {_CURVE}")

    def _await_welcome(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        text = f"{self._where.endpoint} takes connections and does not answer"
        self._timer = self.loop.call_later(HELLO_PATIENCE, self._lost, text)

    def _on_frames(self, frames: list[memoryview]) -> None:
        self._heard = self.loop.time()
        try:
            message = decode_from_listener(frames)
        except ProtocolError as error:
            self._refuse(f"it does not speak our protocol: {error}")
            return
        self._on_message(message)

    def _on_message(self, message: FromListener) -> None:
        match message:
            case AllAccepted(answers):
                for answer in answers:
                    self._outbox.accepted(answer)
            case Accepted():
                self._outbox.accepted(message)
            case Refused():
                self._be_refused(message)
            case Ended() | Failed() | Progress():
                self._questions.answered(message)
            case Alive():
                pass  # that it was heard is what it is for
            case Welcome():
                self._be_welcome(message)
            case WhoAreYou():
                self._introduce_again()
            case Denied(code, text) if code == Code.FULL:
                self._lost(f"the listener has no place for another client: {text}")
            case Denied(_, text):
                self._refuse(text)
            case Bye() if self._welcome is not None:
                # It still answers, and closes the connection when it has done so.
                self.problem = "the listener goes down"
                self._outbox.lost()
            case Bye():
                self._lost("the listener goes down")

    def _be_refused(self, refusal: Refused) -> None:
        if refusal.code != Code.TAKEN_BACK:
            self._send(encode_from_client(Heard(refusal.number)))
        self._outbox.refused(refusal)

    def _be_welcome(self, welcome: Welcome) -> None:
        self._welcome = welcome
        self._refusal = self.problem = ""
        self._pause = _FIRST_PAUSE
        self._beat_later(welcome.heartbeat)
        self._outbox.welcome(welcome)
        self._questions.welcome()

    def _introduce_again(self) -> None:
        """It has forgotten us. Asked once per message that it did not know, it is told once."""
        if self._welcome is None:
            return
        self._welcome = None
        self._batch = []
        self._outbox.lost()
        self._questions.lost()
        self._say_hello()
        self._await_welcome()

    def _beat_later(self, heartbeat: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self.loop.time() + heartbeat
        self._timer = self.loop.call_at(due, self._beat, heartbeat, due)

    def _beat(self, heartbeat: float, due: float) -> None:
        now = self.loop.time()
        # Late ourselves (a busy loop, a suspended machine), we have not looked who spoke.
        late = now - due > heartbeat
        if not late and now - self._heard > SILENCES * heartbeat:
            self._lost(f"the listener was silent for {now - self._heard:.1f} s", pause=False)
            return
        if now - self._spoke >= 0.9 * heartbeat:
            self._send(encode_from_client(Alive()))
        self._beat_later(heartbeat)


_CURVE = "if it has keys, see that server_public_key is its public key"

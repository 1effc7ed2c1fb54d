"""A worker's end of `--transport zmq`: the queue as the broker knows it, behind a socket.

The listener at the other end may die and be replaced at any moment. Whatever was asked and not
answered is therefore kept, and asked again when a listener wants to know who is there; it has
written down what it has done, so nothing is done twice.
"""

import asyncio
import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zmq

from taskiq_supervise.broker.labels import Schedule
from taskiq_supervise.ipc import (
    DEFAULT_PRIORITY,
    DeadReason,
    LeaseExpired,
    LeaseLost,
    Outcome,
    PayloadTooLarge,
    QueueError,
    QueueFull,
    Ticket,
    UnknownTask,
)
from taskiq_supervise.worker.listener import wire
from taskiq_supervise.worker.listener.hub import LEAVING
from taskiq_supervise.worker.listener.wire import How, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

logger = logging.getLogger("taskiq_supervise.worker")

CLOSE_PATIENCE: Final = 3.0
"""Seconds that the last ends have to be written in; the broker's shutdown has 5."""
_BATCH = 16
"""Messages that are asked for at once, when there are many."""
_RECONNECT = 20
"""Milliseconds, or up to twice that, between looks for a listener while there is none."""


class HubLease:
    """The right to run one message. Steps like those of ipc's Lease."""

    __slots__ = (
        "_queue", "attempt", "buffers", "expires", "held", "is_started", "payload", "seq",
        "task_id",
    )  # fmt: skip

    def __init__(
        self,
        queue: "HubQueue",
        seq: int,
        attempt: int,
        task_id: str,
        expires: float | None,
        payload: bytes,
        buffers: tuple[memoryview, ...],
    ) -> None:
        """attempt: how often it was started before."""
        self._queue = queue
        self.seq = seq
        self.attempt = attempt
        self.task_id = task_id
        self.expires = expires
        self.payload = payload
        self.buffers = buffers
        self.held = True
        self.is_started = False

    @property
    def start_number(self) -> int:
        """Which start it is, or would be, as the hub counts it from the moment it gave it to us."""
        return self.attempt + (not self.is_started)

    def start(self) -> int:
        self._check()
        if self.expires is not None and time.time() >= self.expires:
            self._queue.end(self, How.EXPIRED)
            raise LeaseExpired(f"the time of task {self.task_id!r} is over")
        self.attempt += 1
        self.is_started = True
        return self.attempt

    def finish(self, *, keep: bool) -> None:
        self._check()
        self._queue.end(self, How.NO_RESULT if keep else How.FORGET)

    def dead_letter(self, reason: DeadReason, detail: str) -> None:
        self._check()
        started = b"1" if self.is_started else b"0"
        self._queue.end(self, How.DEAD, [str(int(reason)).encode(), detail.encode(), started])

    def release(self) -> None:
        self._check()
        self._queue.end(self, How.RELEASE)

    def _check(self) -> None:
        if not self.held:
            raise LeaseLost(f"the lease of task {self.task_id!r} has ended")

    def __repr__(self) -> str:
        return f"<HubLease of {self.task_id!r}, {'held' if self.held else 'ended'}>"


@dataclass(eq=False)
class _Request:
    """Asked, and not answered."""

    frames: "list[Buffer]"
    answer: "asyncio.Future[list[zmq.Frame]]"
    lease: HubLease | None = None
    """Whose end it says."""
    is_cancelled: bool = False


@dataclass
class _Claiming:
    """Messages asked for, on this connection."""

    granted: int = 0
    received: int = 0
    ready: deque[HubLease] = field(default_factory=deque)
    claimer: "asyncio.Future[None] | None" = None
    wanted: bool = False
    many_wait: bool = False


class HubQueue:
    """A `broker.queue.Queue`. Belongs to the loop on which start() ran."""

    def __init__(self, folder: Path, *, takes: bool, most: int = 0) -> None:
        """folder: the hub's. takes: it claims messages; else it only sends and waits. most: of them
        that can run at the same time; 0: any number."""
        self.directory = folder
        self.others_are_empty = False
        self._takes = takes
        self._most = most
        self._sender = os.urandom(16)
        self._worker = ""
        self._nonce = b""
        self._welcome = False
        self._requests: dict[int, _Request] = {}
        self._last_request = 0
        self._leases: dict[tuple[int, int], HubLease] = {}
        self._claiming = _Claiming()
        self._wire: wire.Wire | None = None

    async def start(self) -> None:
        """Connects, as soon as a listener is there; nothing waits for that."""
        self._loop = asyncio.get_running_loop()
        self._worker = wire.identity(os.getpid())
        self._address = wire.Address(self.directory)
        self._wire = wire.Wire(zmq.DEALER, self._receive)
        socket = self._wire.socket
        socket.setsockopt(zmq.IDENTITY, self._sender)
        socket.reconnect_ivl = _RECONNECT
        self._wire.tell_of_connections(self._knock)
        socket.connect(self._address.url)

    async def close(self) -> None:
        """Gives back what is held, waits until it is written, and leaves."""
        if self._wire is None:
            return
        self._want_no_more()  # else it comes back at once
        for lease in list(self._leases.values()):
            if lease.held:
                lease.release()
        deadline = self._loop.time() + CLOSE_PATIENCE
        while ends := self._ends():
            left = deadline - self._loop.time()
            if left <= 0:
                logger.warning(
                    "The listener has not confirmed the ends of %d tasks: they run again",
                    len(ends),
                )
                break
            await asyncio.wait(ends, timeout=left)
        self._say([Kind.BYE])
        self.abandon()

    def _ends(self) -> "list[asyncio.Future[list[zmq.Frame]]]":
        """Those that the hub has not confirmed."""
        return [request.answer for request in self._requests.values() if request.lease is not None]

    def abandon(self) -> None:
        if self._wire is None:
            return
        self._wire.close()
        self._wire = None
        self._address.close()
        for request in self._requests.values():
            if not request.answer.get_loop().is_closed():
                request.answer.cancel()
        self._requests.clear()

    # ---- putting --------------------------------------------------------------------------------

    async def put(
        self,
        task_id: str,
        payload: "Buffer",
        *,
        buffers: "Sequence[Buffer]" = (),
        priority: int = DEFAULT_PRIORITY,
        due: float | None = None,
        expires: float | None = None,
        max_deliveries: int = 0,
        timeout: float | None = None,
    ) -> Ticket:
        schedule = Schedule(priority, due, expires, max_deliveries)
        frames = [task_id.encode(), wire.schedule_frame(schedule), payload, *buffers]
        number, answer = self._ask(Kind.PUT, frames)
        if timeout is not None:
            await asyncio.wait({answer}, timeout=timeout)
            if not answer.done():
                self._cancel(number)
        try:
            (ticket,) = await asyncio.shield(answer)
        except asyncio.CancelledError:
            self._cancel(number)
            raise
        seq = ticket.bytes
        return Ticket(0, wire.to_number(seq) if seq else 0, task_id)

    # ---- claiming -------------------------------------------------------------------------------

    async def claim(self) -> HubLease:
        """The next message; one claim at a time."""
        claiming = self._claiming
        try:
            while not claiming.ready:
                claiming.wanted = True
                if claiming.granted <= claiming.received:
                    claiming.granted = claiming.received + self._room()
                    self._grant()
                claiming.claimer = self._loop.create_future()
                await claiming.claimer
        except asyncio.CancelledError:
            self._want_no_more()
            raise
        finally:
            claiming.claimer = None
        lease = claiming.ready.popleft()
        if lease.attempt and claiming.ready:
            self._want_no_more()  # it may have to run alone; the others need not wait for that
        return lease

    def _room(self) -> int:
        """How many to ask for."""
        if not self._claiming.many_wait:
            return 1
        free = self._most - len(self._leases) if self._most > 0 else _BATCH
        return max(1, min(_BATCH, free))

    def _want_no_more(self) -> None:
        claiming = self._claiming
        claiming.wanted = False
        claiming.granted = claiming.received
        self._grant()
        while claiming.ready:
            claiming.ready.popleft().release()

    def _grant(self) -> None:
        if self._welcome:
            self._say([Kind.CREDIT + wire.number(self._claiming.granted)])

    def _arrived(self, head: bytes, frames: list[zmq.Frame]) -> None:
        nonce, seq, attempt, expires, many_wait = wire.to_message_head(head)
        if nonce != self._nonce:
            return
        lease = HubLease(
            self,
            seq,
            attempt - 1,
            frames[0].bytes.decode(),
            expires,
            frames[1].bytes,
            tuple(frame.buffer for frame in frames[2:]),
        )
        self._leases[seq, attempt] = lease
        claiming = self._claiming
        claiming.received += 1
        claiming.many_wait = many_wait
        if not claiming.wanted:  # it was on its way
            lease.release()
            return
        claiming.ready.append(lease)
        if claiming.claimer is not None and not claiming.claimer.done():
            claiming.claimer.set_result(None)

    # ---- ends -----------------------------------------------------------------------------------

    def end(
        self, lease: HubLease, how: bytes, data: "Sequence[Buffer]" = ()
    ) -> "asyncio.Future[list[zmq.Frame]]":
        """It is over here; the hub is told until it has confirmed it."""
        if how != How.ACK:
            lease.held = False
        number = self._last_request + 1
        head = wire.end_head(number, lease.seq, lease.start_number, how)
        answer = self._send_request(number, [head, *data], lease)
        answer.add_done_callback(lambda _: self._ended(lease))
        return answer

    def _ended(self, lease: HubLease) -> None:
        key = lease.seq, lease.start_number
        # One that was given back may have come again.
        if not lease.held and self._leases.get(key) is lease:
            del self._leases[key]

    async def acknowledge(self, lease: HubLease) -> None:
        await asyncio.shield(self.end(lease, How.ACK))

    async def complete(
        self,
        lease: HubLease,
        result: "Buffer",
        buffers: "Sequence[Buffer]" = (),
        *,
        timeout: float | None = None,
    ) -> None:
        """Returns once it is written; while the disk is full, it waits.

        timeout: of no use here. The hub has the result, and it counts when there is room.
        """
        del timeout
        for part in (result, *buffers):
            size = memoryview(part).nbytes
            if size > wire.MAX_PART:
                raise PayloadTooLarge(f"a part of {size} bytes; the store takes {wire.MAX_PART}")
        if not lease.held:
            raise LeaseLost(f"the lease of task {lease.task_id!r} has ended")
        await asyncio.shield(self.end(lease, How.RESULT, [result, *buffers]))

    # ---- outcomes -------------------------------------------------------------------------------

    async def wait(self, task: str | Ticket, timeout: float | None = None) -> Outcome:
        number, answer = self._ask(Kind.WAIT, _target(task))
        try:
            outcome = wire.to_outcome(await asyncio.wait_for(answer, timeout))
        except (TimeoutError, asyncio.TimeoutError, asyncio.CancelledError):
            self._cancel(number)
            self._requests.pop(number, None)
            raise
        assert outcome is not None, "it was waited for"
        return outcome

    async def look(self, task_id: str) -> Outcome | None:
        _, answer = self._ask(Kind.LOOK, _target(task_id))
        return wire.to_outcome(await answer)

    def is_over(self, task_id: str) -> bool:
        """Always false: the listener knows, and sweeps."""
        return False

    def explain_end(self) -> None:
        """A file, because this may be the last thing that the process does."""
        (self.directory / f"{LEAVING}{os.getpid()}").touch(mode=0o600)

    # ---- the connection -------------------------------------------------------------------------

    def _ask(
        self, kind: bytes, frames: "Sequence[Buffer]"
    ) -> "tuple[int, asyncio.Future[list[zmq.Frame]]]":
        number = self._last_request + 1
        return number, self._send_request(number, [kind + wire.number(number), *frames])

    def _send_request(
        self, number: int, frames: "list[Buffer]", lease: HubLease | None = None
    ) -> "asyncio.Future[list[zmq.Frame]]":
        if self._wire is None:
            raise RuntimeError("the queue is not started on an event loop, or closed")
        self._last_request = number
        request = _Request(frames, self._loop.create_future(), lease)
        self._requests[number] = request
        if self._welcome:
            self._wire.send(frames)
        return request.answer

    def _cancel(self, number: int) -> None:
        request = self._requests.get(number)
        if request is None:
            return
        request.is_cancelled = True
        if self._welcome:
            self._say([Kind.CANCEL + wire.number(number)])

    def _say(self, frames: "Sequence[Buffer]") -> None:
        if self._wire is not None:
            self._wire.send(frames)

    def _receive(self, frames: list[zmq.Frame]) -> None:
        head, rest = frames[0].bytes, frames[1:]
        kind = head[:1]
        if kind == Kind.WHO:
            self._introduce(rest[0].bytes)
        elif kind == Kind.WELCOME:
            self._resume(rest[0].bytes)
        elif kind == Kind.MESSAGE:
            self._arrived(head, rest)
        elif kind == Kind.EMPTY:
            self.others_are_empty = head[1:] == b"1"
        else:
            self._answered(kind, wire.to_number(head[1:]), rest)

    def _knock(self) -> None:
        self._say([Kind.KNOCK])

    def _introduce(self, nonce: bytes) -> None:
        """A listener asks who we are: a new one, or we came to it anew."""
        self._nonce = nonce
        self._welcome = False
        self.others_are_empty = False
        have = [[seq, attempt] for seq, attempt in self._leases]
        self._say([Kind.HELLO, wire.hello(nonce, self._worker, self._sender, self._takes, have)])

    def _resume(self, nonce: bytes) -> None:
        if nonce != self._nonce:
            return
        self._welcome = True
        claiming = self._claiming
        claiming.granted = int(claiming.claimer is not None and not claiming.ready)
        claiming.received = 0
        for number, request in sorted(self._requests.items()):
            self._say(request.frames)
            if request.is_cancelled:
                self._say([Kind.CANCEL + wire.number(number)])
        # After what was given back, which may come again.
        self._grant()

    def _answered(self, kind: bytes, number: int, frames: list[zmq.Frame]) -> None:
        request = self._requests.pop(number, None)
        if request is None or request.answer.done():
            return
        if kind == Kind.LOST:
            assert request.lease is not None, "only leases are lost"
            self._lost(request.lease, request.answer)
        elif kind == Kind.ERROR:
            request.answer.set_exception(_error(frames[0].bytes, frames[1].bytes.decode()))
        else:
            request.answer.set_result(frames)

    def _lost(self, lease: HubLease, answer: "asyncio.Future[list[zmq.Frame]]") -> None:
        lease.held = False
        error = LeaseLost(f"task {lease.task_id!r} was given to another worker, or has ended")
        logger.warning("%s", error)
        answer.set_exception(error)
        answer.exception()  # somebody may wait for it, or nobody


def _target(task: str | Ticket) -> "list[Buffer]":
    if isinstance(task, str):
        return [task.encode(), b""]
    return [task.task_id.encode(), wire.number(task.generation)]


def _error(code: bytes, text: str) -> QueueError:
    kinds = {b"full": QueueFull, b"large": PayloadTooLarge, b"unknown": UnknownTask}
    return kinds.get(code, QueueError)(text)

"""The messages that a client has sent or will, until the listener has accepted them.

No sockets in here. Each message gets its number when it is first sent and keeps it. What the
listener has not answered when a connection is lost is sent again over the next, in order; the
listener says with its welcome up to which number it has everything. So a message is accepted once
however often it was sent.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from taskiq_supervise.broker.zeromq.protocol import (
    Accepted,
    Code,
    Put,
    Refused,
    TakeBack,
    Welcome,
    encode_from_client,
    numbered,
    size_of_frames,
)
from taskiq_supervise.ipc import Ticket

if TYPE_CHECKING:
    from typing_extensions import Buffer


class PutRefused(Exception):
    """The listener will not take this message.

    Attributes:
        code: why, see protocol.Code.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Outgoing:
    """One message on its way.

    Attributes:
        number: 0 until it is sent.
        accepted: its ticket; None when it was accepted by a listener that could not say so.
        given_up: nobody waits for it any more. It stays in the books until it is answered.
    """

    __slots__ = ("accepted", "frames", "given_up", "number", "size", "task_id")

    def __init__(self, put: Put) -> None:
        """put: its number does not matter."""
        self.task_id = put.task_id
        self.frames = encode_from_client(put)
        self.size = size_of_frames(self.frames)
        self.number = 0
        self.given_up = False
        self.accepted: asyncio.Future[Ticket | None] = asyncio.get_running_loop().create_future()

    def answer(self, ticket: Ticket | None) -> None:
        if not self.accepted.done():
            self.accepted.set_result(ticket)

    def fail(self, error: Exception) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)


class Outbox:
    """Sends what the window allows, in order."""

    def __init__(self, send: "Callable[[Sequence[Buffer]], None]") -> None:
        self._send = send
        self._welcome: Welcome | None = None
        self._newest = 0
        self._waiting: deque[Outgoing] = deque()
        self._sent: dict[int, Outgoing] = {}
        self._sent_bytes = 0

    def add(self, message: Outgoing) -> None:
        self._waiting.append(message)
        self._go_on()

    def give_up(self, message: Outgoing) -> bool:
        """Takes it back, as far as that is possible. True: the listener may have it."""
        message.given_up = True
        if message.number in self._sent:
            if self._welcome is not None:
                self._send(encode_from_client(TakeBack(message.number)))
            return True
        if message in self._waiting:
            self._waiting.remove(message)
        return bool(message.number)

    def welcome(self, welcome: Welcome) -> None:
        """A listener is there: sends again what it does not have."""
        self._welcome = welcome
        self._newest = max(self._newest, welcome.last)
        again = [message for message in self._unanswered() if not message.given_up]
        self._sent, self._sent_bytes = {}, 0
        self._waiting = deque(message for message in self._waiting if not message.number)
        for message in again:
            if message.number <= welcome.last:
                message.answer(None)
        self._waiting.extendleft(
            message for message in reversed(again) if message.number > welcome.last
        )
        self._go_on()

    def lost(self) -> None:
        """No listener is there: what comes waits for the next."""
        self._welcome = None

    def accepted(self, answer: Accepted) -> None:
        message = self._take(answer.number)
        if message is not None:
            ticket = None
            if answer.slot is not None:
                ticket = Ticket(answer.slot, answer.generation, message.task_id)
            message.answer(ticket)

    def refused(self, answer: Refused) -> None:
        message = self._take(answer.number)
        if message is not None:
            message.fail(PutRefused(answer.code, answer.text))

    def fail(self, error: Callable[[bool], Exception]) -> None:
        """Ends all that is under way. error: makes one, given whether the listener may have it."""
        messages = [*self._unanswered(), *self._waiting]
        self._sent, self._sent_bytes = {}, 0
        self._waiting.clear()
        for message in messages:
            message.fail(error(message.number > 0))

    def __len__(self) -> int:
        return len(self._sent) + len(self._waiting)

    def _unanswered(self) -> list[Outgoing]:
        """Those that were sent, in the order of their numbers."""
        again = [message for message in self._waiting if message.number]
        return sorted([*self._sent.values(), *again], key=lambda message: message.number)

    def _go_on(self) -> None:
        if self._welcome is None:
            return
        while self._waiting:
            message = self._waiting[0]
            if message.size > self._welcome.max_message:
                self._waiting.popleft()
                limit = self._welcome.max_message
                message.fail(PutRefused(Code.TOO_LARGE, f"the listener takes {limit} bytes"))
                continue
            if not self._fits(message.size):
                return
            self._waiting.popleft()
            if not message.number:
                self._newest = message.number = self._newest + 1
                message.frames = numbered(message.frames, message.number)
            self._sent[message.number] = message
            self._sent_bytes += message.size
            self._send(message.frames)

    def _fits(self, size: int) -> bool:
        """A message that is larger than the window alone may go when nothing else is under way."""
        assert self._welcome is not None
        if not self._sent:
            return True
        within = self._sent_bytes + size <= self._welcome.window_bytes
        return within and len(self._sent) < self._welcome.window

    def _take(self, number: int) -> Outgoing | None:
        message = self._sent.pop(number, None)
        if message is not None:
            self._sent_bytes -= message.size
            self._go_on()
        return message

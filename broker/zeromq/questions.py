"""What a client has asked and not heard yet. Asked again when another listener answers."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from taskiq_supervise.broker.zeromq.protocol import (
    AskProgress,
    Cancel,
    Code,
    Ended,
    Failed,
    Look,
    Progress,
    Wait,
    encode_from_client,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

Question: TypeAlias = Wait | Look | AskProgress
Answer: TypeAlias = Ended | Progress | Failed

_PAUSE = 0.2
"""Seconds until what the listener had no place for is asked again."""


class Questions:
    """The books; whoever asks awaits the answer in `ask()`."""

    def __init__(self, send: "Callable[[Sequence[Buffer]], None]") -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[Question, asyncio.Future[Answer]]] = {}
        self._connected = False

    async def ask(self, question: Callable[[int], Question]) -> Answer:
        """question: makes the message for the number of a request. Waits as long as it takes."""
        number = next(self._numbers)
        message = question(number)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._open[number] = message, future
        if self._connected:
            self._send(encode_from_client(message))
        try:
            return await future
        finally:
            if self._open.pop(number, None) is not None and self._connected:
                self._send(encode_from_client(Cancel(number)))

    def welcome(self) -> None:
        """A listener is there, which has heard none of this."""
        self._connected = True
        for message, _ in self._open.values():
            self._send(encode_from_client(message))

    def lost(self) -> None:
        self._connected = False

    def answered(self, answer: Answer) -> None:
        if isinstance(answer, Failed) and answer.code == Code.TOO_MANY:
            asyncio.get_running_loop().call_later(_PAUSE, self._ask_again, answer.request)
            return
        _, future = self._open.pop(answer.request, (None, None))
        if future is not None and not future.done():
            future.set_result(answer)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Ends all that is asked with this error."""
        futures = [future for _, future in self._open.values()]
        self._open.clear()
        for future in futures:
            if not future.done():
                future.set_exception(error())

    def __len__(self) -> int:
        return len(self._open)

    def _ask_again(self, number: int) -> None:
        if number in self._open and self._connected:
            self._send(encode_from_client(self._open[number][0]))

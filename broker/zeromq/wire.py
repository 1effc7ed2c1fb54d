"""A ZeroMQ socket on an event loop, asyncio's own or uvloop.

Without zmq.asyncio, which makes a future per message: what has arrived is handed over as it comes,
many messages per turn of the loop. ZeroMQ's descriptor is edge-triggered: it tells once that the
socket's state has changed, and a send may swallow what it would have told of a receive. So each end
of a burst and each send looks again, at most once per turn.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import zmq

from taskiq_supervise.broker.payload import LARGE

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BURST = 256
"""Messages in a turn of the loop; others want their turn, too."""
_NOW = int(zmq.DONTWAIT)
_NOW_AND_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)


class Wire:
    """Not more than what a socket needs to be used on a loop; whose it is decides the rest."""

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        on_message: Callable[[list[memoryview]], None],
        on_room: Callable[[], None] | None = None,
    ) -> None:
        """socket: ours from now on. on_message: the frames of one message, not copied and ours to
        write to. on_room: called when there is room again after a `send()` that found none."""
        self.socket = socket
        self._on_message = on_message
        self._on_room = on_room
        self._wants_room = False
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._again: asyncio.Handle | None = None
        self._loop.add_reader(self._descriptor, self._look)
        self._look_again()

    def send(self, frames: "Sequence[Buffer]") -> bool:
        """Hands a message over to ZeroMQ; large frames are not copied. False: there is no room.

        Raises zmq.ZMQError for anything else, as a ROUTER's unknown peer.
        """
        # Frame by frame, as below: pyzmq's own loop takes three times as long.
        send, last = self.socket.send, len(frames) - 1
        try:
            for position, frame in enumerate(frames):
                flags = _NOW if position == last else _NOW_AND_MORE
                send(frame, flags, memoryview(frame).nbytes < LARGE)
        except zmq.Again:
            self._wants_room = True
            return False
        finally:
            self._look_again()
        return True

    def close(self, linger: float = 0.0) -> None:
        """linger: seconds that what was sent has to get out, in the background."""
        if self.socket.closed:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
        if self._again is not None:
            self._again.cancel()
        self.socket.close(linger=round(linger * 1000))

    def _look_again(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._look)

    def _look(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for _ in range(_BURST):
            if self.socket.closed:  # by what the last message led to
                return
            try:
                frames = self._receive()
            except zmq.Again:
                break
            try:
                self._on_message(frames)
            except BaseException:
                self._look_again()  # the descriptor will not tell of those behind it
                raise
        else:
            self._look_again()
        if self._wants_room and not self.socket.closed and self._has_room():
            self._wants_room = False
            if self._on_room is not None:
                self._on_room()

    def _receive(self) -> list[memoryview]:
        receive = self.socket.recv
        frame = receive(_NOW, False)
        frames = [frame.buffer]
        while frame.more:
            frame = receive(_NOW, False)
            frames.append(frame.buffer)
        return frames

    def _has_room(self) -> bool:
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

"""What the supervisor says to a process below it arrives with whom it is for."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

from taskiq_supervise.ipc.framing import encode
from taskiq_supervise.worker.link import Link


async def heard(*, told_of_the_gone: bool) -> tuple[list[str], list[Mapping[str, Any]]]:
    """Orders, and who is gone, of what a supervisor said before it ended."""
    supervisor, ours = socket.socketpair()
    orders: list[str] = []
    gone: list[Mapping[str, Any]] = []
    ended = asyncio.Event()
    link = Link(ours.detach())
    link.listen(orders.append, ended.set, gone.append if told_of_the_gone else None)
    for message in ({"op": "go"}, {"op": "gone", "pid": 17}, {"op": "settle"}):
        supervisor.send(encode(message))
    supervisor.close()
    await ended.wait()
    link._socket.close()  # which a process leaves to its end
    return orders, gone


async def test_who_is_gone_is_told_to_listeners_that_want_to_know() -> None:
    assert await heard(told_of_the_gone=True) == (
        ["go", "settle"],
        [{"op": "gone", "pid": 17}],
    )
    assert await heard(told_of_the_gone=False) == (["go", "settle"], [])

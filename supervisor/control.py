"""The control socket's server: one JSON object per line, answered by one JSON object per line.

    {"command": "status"}  ->  {"ok": true, "result": ...} | {"ok": false, "error": "..."}

The socket is 0600 in a folder that is 0700; the kernel's word for who is at the other end
(SO_PEERCRED) is checked all the same, since a runtime directory can be given by hand. Whoever gets
that far may still be slow, silent or broken: lines and connections are limited, every wait for a
client has an end, and the supervisor's own work goes on in the same loop meanwhile. A command may
take its time, as a reload that somebody waits for; how long is its own affair.
"""

import asyncio
import inspect
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MAX_LINE = 1 << 16
"""Bytes of a request."""
MAX_CONNECTIONS = 32
PATIENCE = 10.0
"""Seconds for a client to send its next request, or to take an answer."""

_BACKLOG = 8
"""Without descriptors asyncio tries to accept as many in a row, with a traceback for each."""
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid

Command = Callable[[Mapping[str, Any]], Any]
"""From a request to something that JSON can express, or to an awaitable of it."""


class CommandError(Exception):
    """A command cannot be carried out; the message is the answer."""


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a Unix socket, at the time it was connected."""
    _, uid, _ = _UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size),
    )
    return int(uid)


class ControlServer:
    """Answers each request by the command that it names.

    A connection's requests are answered one after the other. The client of a command that waits may
    close its side for sending meanwhile, as `nc` does, and still gets its answer.
    """

    def __init__(self, commands: Mapping[str, Command], *, patience: float = PATIENCE) -> None:
        self._commands = commands
        self._patience = patience
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=MAX_LINE, backlog=_BACKLOG
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        # Nothing is left in the transport's buffer once `drain` returns.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._converse(reader, writer)
        except ConnectionError:
            writer.transport.abort()
        finally:
            self._conversations.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = peer_uid(writer.get_extra_info("socket"))
        if uid not in {os.geteuid(), 0}:
            await self._reply(writer, _refusal(f"uid {uid} may not control this instance"))
            return
        if len(self._conversations) > MAX_CONNECTIONS:
            await self._reply(writer, _refusal("too many connections; try again"))
            return
        while True:
            try:
                with self._limit(writer):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                refusal = _refusal(f"a request of more than {MAX_LINE} bytes")
                await self._reply(writer, refusal)
                return
            await self._reply(writer, await self._answer(line))

    async def _reply(self, writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
        writer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
        with self._limit(writer):
            await writer.drain()

    @contextmanager
    def _limit(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """Cut the connection when the wait in here takes too long.

        Not `asyncio.wait_for`: before Python 3.12 it can swallow a cancellation.
        """
        timer = asyncio.get_running_loop().call_later(self._patience, writer.transport.abort)
        try:
            yield
        finally:
            timer.cancel()

    async def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _refusal("the request is not JSON")
        if not isinstance(request, dict):
            return _refusal("the request is not a JSON object")
        name = request.get("command")
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join(sorted(self._commands))
            return _refusal(f"unknown command {name!r}; known: {known}")
        try:
            result = command(request)
            if inspect.isawaitable(result):
                result = await result
            return {"ok": True, "result": result}
        except CommandError as error:
            return _refusal(str(error))


def _refusal(error: str) -> Mapping[str, Any]:
    return {"ok": False, "error": error}

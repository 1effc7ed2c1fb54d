"""Health over HTTP, for orchestrators: `GET /healthz` and `GET /readyz`, nothing else.

A handful of lines of HTTP/1.1 instead of a framework, because the supervisor has to stay small, and
because what can be asked is known: one line, no body. Who is slow, or asks for more, is cut off.
"""

import asyncio
import errno
import json
import os
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from taskiq_supervise.supervisor.probes import PROBES, Verdict

MOST_CONNECTIONS = 64
PATIENCE = 5.0
"""Seconds for a request to arrive and an answer to leave."""
_LONGEST = 8192
_PATHS = {"/healthz": "live", "/readyz": "ready"}


class AddressError(ValueError):
    """Not an address to listen on."""


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[IPV6]:PORT` or `:PORT` (all interfaces). Raises AddressError."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in bare and bare == host):
        raise AddressError(f"{text!r} is not of the form HOST:PORT, as 127.0.0.1:9808")
    return bare, int(port)


class CannotListen(Exception):
    """The address is somebody else's, or none of this machine."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        reason = str(error.strerror)
        if not isinstance(error, socket.gaierror) and error.errno:
            reason = os.strerror(error.errno)  # asyncio's own text says it all again
        super().__init__(f"--http cannot listen on {_shown((host, port))}: {reason}")
        self.errno = max(error.errno or 0, 0)  # below 0: of the resolver
        self.is_taken = error.errno == errno.EADDRINUSE


class HealthServer:
    """Answers from what `status` returns at that moment."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> None:
        """Raises CannotListen."""
        try:
            self._server = await asyncio.start_server(
                self._serve, host or None, port, limit=_LONGEST, reuse_address=True
            )
        except OSError as error:
            raise CannotListen(host, port, error) from error

    @property
    def addresses(self) -> list[str]:
        """Where it listens."""
        sockets = () if self._server is None else self._server.sockets
        return [_shown(sock.getsockname()) for sock in sockets]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            await asyncio.wait_for(self._answer(reader, writer), PATIENCE)
        except (
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            asyncio.TimeoutError,
            ConnectionError,
            TimeoutError,
        ):
            writer.transport.abort()
        finally:
            self._open.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(self.respond(head))
        await writer.drain()

    def respond(self, head: bytes) -> bytes:
        """The answer to a request, of which this is the head."""
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST, {"error": "this is not HTTP/1.1"})
        probe = _PATHS.get(target.partition("?")[0])
        if probe is None:
            known = " and ".join(_PATHS)
            return _response(HTTPStatus.NOT_FOUND, {"error": f"there are {known}"})
        if method not in {"GET", "HEAD"}:
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "GET or HEAD"})
        verdict = PROBES[probe](self._status())
        return _verdict(verdict, body=method == "GET")


def _verdict(verdict: Verdict, *, body: bool) -> bytes:
    status = HTTPStatus.OK if verdict.ok else HTTPStatus.SERVICE_UNAVAILABLE
    return _response(status, {"ok": verdict.ok, "reason": verdict.reason}, body=body)


def _response(status: HTTPStatus, content: Mapping[str, Any], *, body: bool = True) -> bytes:
    data = json.dumps(content).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (data if body else b"")


def _shown(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

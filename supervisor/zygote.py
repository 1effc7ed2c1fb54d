"""The supervisor's side of the zygote: start it, ask it for workers, understand its answers.

The zygote is the only child that runs code of the application before a fork, so nothing it says is
taken on trust: an answer that is not understood is a `ZygoteStuck`, which replaces it.
"""

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from taskiq_supervise import __version__
from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import ExitStatus
from taskiq_supervise.supervisor.core.transport import Listening, Transport
from taskiq_supervise.supervisor.links import Channel
from taskiq_supervise.supervisor.processes import Children, spawn

MODULE = "taskiq_supervise.worker.zygote"
# Its socket closes when it exits; the exit says more, and comes within this time if it comes.
_EXIT_FOLLOWS = 1.0
_STACKS_PATIENCE = 0.3


def understand(message: Mapping[str, Any], generation: int) -> m.Event:
    """The event that a message of this zygote stands for."""
    try:
        return _understand(message, generation)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"the zygote said {message!r} ({type(error).__name__}: {error})"
        return m.ZygoteStuck(generation, what)


def _understand(message: Mapping[str, Any], generation: int) -> m.Event:
    match message["op"]:
        case "loaded" if message["version"] != __version__:
            # Each of its workers would be, too: what one process writes another reads otherwise.
            text = (
                f"it imports taskiq-supervise {message['version']} and the supervisor is "
                f"{__version__}: restart the service instead of reloading it"
            )
            return m.ZygoteLoadFailed(generation, message=text)
        case "loaded":
            return m.ZygoteLoaded(
                generation,
                transport=_transport(message["transport"]),
                threads=tuple(map(str, message["threads"])),
                broadcast=None if message["broadcast"] is None else str(message["broadcast"]),
            )
        case "load_failed":
            traceback = message.get("traceback")
            return m.ZygoteLoadFailed(
                generation,
                message=str(message["message"]),
                traceback=None if traceback is None else str(traceback),
            )
        case "forked":
            return m.Forked(
                int(message["slot"]),
                int(message["generation"]),
                int(message["pid"]),
                jitter=random.random(),
            )
        case "fork_failed":
            return m.ForkFailed(
                int(message["slot"]),
                int(message["generation"]),
                message=str(message["message"]),
                jitter=random.random(),
            )
    raise ValueError("unknown op")


def _transport(described: Mapping[str, Any]) -> Transport:
    kind = described["kind"]
    if kind == "broker":
        return Transport("broker", str(described["class"]))
    if kind not in {"shm", "listener"}:
        raise ValueError(f"unknown transport {kind!r}")
    return Transport(
        kind,
        name=str(described["name"]),
        directory=str(described["directory"]),
        geometry=dict(described.get("geometry") or {}),
        mode=int(described.get("mode", 0o600)),
        group=described.get("group"),
        listener=_listening(described) if kind == "listener" else None,
    )


def _listening(described: Mapping[str, Any]) -> Listening:
    store = described["store"]
    if store not in {"shm", "zmq"}:
        raise ValueError(f"unknown store {store!r}")
    return Listening(
        broker=str(described["broker"]),
        cls=str(described["class"]),
        reason=str(described["reason"]),
        endpoints=tuple(map(str, described["endpoints"])),
        own=bool(described["own"]),
        notes=tuple(map(str, described["notes"])),
        store=store,
    )


class ZygoteProcess:
    """One generation of the zygote, from its start to its exit."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        children: Children,
        generation: int,
        config: Mapping[str, Any],
        post: Callable[[m.Event], None],
        descriptors: int,
        admit: Callable[[int], None] | None = None,
    ) -> None:
        """descriptors: its soft limit, 0: ours. admit: called with its pid before it has loaded
        anything."""
        self.generation = generation
        self._loop = loop
        self._post = post
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        spare = -1
        try:
            # Should there be none left when it is there, it could not be watched.
            spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            pid = spawn(_command(theirs.fileno(), descriptors), os.environ, theirs.fileno())
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            if spare >= 0:
                os.close(spare)
        if admit is not None:
            admit(pid)
        self._channel = Channel(loop, ours, self._on_message, self._on_end)
        self._child = children.adopt(pid, self._on_exit)
        self._channel.start()
        self._channel.send({"op": "load", "config": config})

    @property
    def pid(self) -> int:
        return self._child.pid

    def fork(self, request: Mapping[str, Any], fds: tuple[int, int, int]) -> None:
        """fds: the worker's link, the pipe for its stacks, its timer; closed here once sent."""
        self._channel.send({"op": "fork", **request}, fds)

    def end(self) -> None:
        """The end of its socket and SIGTERM both mean: exit. One of them always reaches it."""
        self._channel.close()
        self._child.signal(signal.SIGTERM)

    def kill(self, *, dump: bool = False) -> None:
        """SIGKILL its group; `dump`: once it has had time to write its stacks to stderr."""
        if dump:
            self._child.signal(signal.SIGUSR1)
            self._loop.call_later(_STACKS_PATIENCE, self._child.kill_group)
        else:
            self._child.kill_group()

    def _on_message(self, message: dict[str, Any]) -> None:
        self._post(understand(message, self.generation))

    def _on_end(self, reason: str | None) -> None:
        if reason is not None:
            self._post(m.ZygoteStuck(self.generation, f"the zygote said {reason}"))
        else:
            self._loop.call_later(_EXIT_FOLLOWS, self._closed_and_alive)

    def _closed_and_alive(self) -> None:
        if not self._child.gone:
            self._post(m.ZygoteStuck(self.generation, "the zygote closed its socket and lives on"))

    def _on_exit(self, status: ExitStatus) -> None:
        self._channel.read_rest()
        self._channel.close()
        self._post(m.ZygoteExited(self.generation, status, jitter=random.random()))


def _command(fd: int, descriptors: int) -> list[str]:
    # `-m` would put the current folder before the standard library, and a queue.py that lies there
    # would be imported in its place; -P, which prevents it, is not in Python 3.10. The zygote adds
    # the folder itself.
    start = (
        "import sys; del sys.path[0]; import runpy; "
        f"runpy.run_module({MODULE!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", start, "--fd", str(fd), "--descriptors", str(descriptors)]

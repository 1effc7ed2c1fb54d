"""The zygote: imports the application once, and forks workers that have it from their first moment.

Measured: a fork takes 7 ms, a start with imports 1,220 ms; and what was imported before the fork is
shared memory. It runs nothing else, no event loop and no second thread, because a fork copies only
the thread that forks, and the locks of all of them. An application that starts threads while it is
imported is therefore not forked: the supervisor is told, and asks for workers that import for
themselves (`preload` false). Then only a throw-away child imports it here, to say what it is.

Started as `python -m taskiq_supervise.worker.zygote --fd N`, N being a socket to the supervisor.
"""

import argparse
import errno
import gc
import importlib
import itertools
import json
import os
import resource
import signal
import socket
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

# Imported before anything is forked, though only workers use them: that is the point of a zygote.
import uvloop  # noqa: F401
from taskiq.abc.broker import AsyncBroker

from taskiq_supervise import __version__
from taskiq_supervise.broker.rule import broadcast_reason
from taskiq_supervise.ipc import Geometry
from taskiq_supervise.ipc.framing import FramingError, LineDecoder, receive, send
from taskiq_supervise.worker import log_style, stacks
from taskiq_supervise.worker.application import Application, ApplicationError, load
from taskiq_supervise.worker.child import become_worker, leave_with
from taskiq_supervise.worker.config import ConfigError, WorkerConfig
from taskiq_supervise.worker.failpoint import failpoint
from taskiq_supervise.worker.feed import feed_for, feed_name, listens_for
from taskiq_supervise.worker.fork import fork_away
from taskiq_supervise.worker.order import Descriptors, ForkOrder, NoDescriptors
from taskiq_supervise.worker.process import (
    configure_logging,
    flush_output,
    let_go_of_text,
    reset_signals,
    set_death_signal,
    set_title,
)


class Zygote:
    """Does what the supervisor says over its socket, one message after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = LineDecoder()
        self._fds: deque[list[int]] = deque()
        """Those of each order that brought some, in the order of their orders."""
        self._config: WorkerConfig | None = None
        self._application: Application | None = None

    def serve(self) -> None:
        """Until the supervisor closes the socket, or is gone."""
        try:
            while self._obey_next():
                continue
        except (ConnectionResetError, BrokenPipeError):
            return  # it went while it was to be read from, or answered

    def _obey_next(self) -> bool:
        data, fds, truncated = receive(self._socket)
        if fds or truncated:
            self._fds.append(fds)
        for message in self._decoder.feed(data):
            self._obey(message)
        return bool(data)

    def _obey(self, message: Mapping[str, Any]) -> None:
        match message.get("op"):
            case "load":
                self._load(message["config"])
            case "fork":
                self._fork(message)
            case other:
                raise FramingError(f"an order {other!r}, which is unknown here")

    # --- load ------------------------------------------------------------------------------------

    def _load(self, values: Mapping[str, Any]) -> None:
        try:
            config = self._config = WorkerConfig.from_dict(values)
        except (ConfigError, TypeError) as error:
            self._answer(
                {"op": "load_failed", "kind": "invalid", "message": str(error), "traceback": None}
            )
            return
        set_title("zygote", config.app)
        log_style.identify(instance=config.instance)
        configure_logging(config)
        if config.preload:
            self._application, answer = import_and_describe(config)
            reset_signals()
            stacks.dump_to(stacks.STDERR)
            handle_signals()
        else:
            answer = describe_in_child(config, self._socket.fileno())
        if answer.get("transport", {}).get("kind") == "listener":
            # So that one that was killed is back at once.
            importlib.import_module("taskiq_supervise.worker.listener.process")
        # Objects that live from here on are never looked at by a worker's collector, which would
        # write to their pages and so copy them.
        gc.collect()
        gc.freeze()
        let_go_of_text()
        self._answer(answer)

    # --- fork ------------------------------------------------------------------------------------

    def _fork(self, message: Mapping[str, Any]) -> None:
        order = ForkOrder.from_message(message)
        config = self._config
        if config is None or not self._fds:
            raise FramingError("an order to fork without a configuration or its descriptors")
        try:
            descriptors = Descriptors.of_message(self._fds.popleft())
        except NoDescriptors as error:
            self._cannot_fork(order, errno.EMFILE, str(error))
            return
        foreign = (self._socket.fileno(), *itertools.chain(*self._fds))
        application = self._application

        def child(forked_by: int) -> NoReturn:
            become_worker(order, forked_by, descriptors, foreign, config, application)

        failpoint("fork.before")
        try:
            pid = fork_away(child)
            failpoint("fork.after")
        except OSError as error:
            self._cannot_fork(order, error.errno, str(error))
        else:
            self._answer(
                {"op": "forked", "slot": order.slot, "generation": order.generation, "pid": pid}
            )
        finally:
            descriptors.close()

    def _cannot_fork(self, order: ForkOrder, number: int | None, message: str) -> None:
        name = {"slot": order.slot, "generation": order.generation}
        self._answer({"op": "fork_failed", **name, "errno": number, "message": message})

    def _answer(self, message: Mapping[str, Any]) -> None:
        send(self._socket, message)


def import_and_describe(config: WorkerConfig) -> tuple[Application | None, dict[str, Any]]:
    """Imports the application into this process. Returns it and the answer for the supervisor."""
    try:
        application = load(config)
        transport = describe_transport(application.broker, config)
    except ApplicationError as error:
        return None, {
            "op": "load_failed",
            "kind": error.kind,
            "message": error.message,
            "traceback": error.traceback,
        }
    # Where one listens for all, each task has one taker.
    direct = transport["kind"] == "broker"
    broadcast = broadcast_reason(application.broker) if direct else None
    return application, {
        "op": "loaded",
        "version": __version__,
        "transport": transport,
        "threads": threads_that_stay(),
        "broadcast": broadcast,
    }


def describe_transport(broker: AsyncBroker, config: WorkerConfig) -> dict[str, Any]:
    """How tasks reach the workers. Raises ApplicationError for a way that cannot be."""
    cls = type(broker)
    full_name = f"{cls.__module__}.{cls.__qualname__}"
    listening = listens_for(broker, config)
    described: dict[str, Any] = {"kind": "broker", "class": full_name}
    if listening is not None:
        store = config.transport
        described |= {"kind": "listener", "store": store, **asdict(listening)}
        if store == "zmq":
            return described | {"name": feed_name(config), "directory": ""}
    queue = feed_for(broker, config)
    if queue is None:
        return described
    kind = "shm" if listening is None else "listener"
    return described | {
        "kind": kind,
        "name": queue.name,
        "directory": str(queue.base_directory),
        "geometry": asdict(queue.geometry or Geometry()),
        "mode": queue.mode,
        "group": queue.group,
    }


def threads_that_stay() -> list[str]:
    """Names of the other threads that a fork would lose.

    Some libraries end theirs before each fork and start them again when they are needed: OpenBLAS,
    which numpy brings along, does. A fork whose child ends at once shows which: their threads are
    gone then. Python's own never are.
    """
    if threading.active_count() == 1 and other_threads():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
            pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    return other_threads()


def other_threads() -> list[str]:
    """Names of the threads beside this one, those without Python too."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    for task in Path("/proc/self/task").iterdir():
        number = int(task.name)
        if number != threading.get_native_id():
            found.append(names.get(number) or (task / "comm").read_text().strip())
    return found


def describe_in_child(config: WorkerConfig, foreign_fd: int) -> dict[str, Any]:
    """The same answer, from a process that imports the application and ends."""
    inner, outer = os.pipe()
    flush_output()
    pid = os.fork()
    if pid == 0:
        os.close(inner)
        os.close(foreign_fd)
        set_death_signal(signal.SIGKILL)
        leave_with(lambda: _report(config, outer))
    os.close(outer)
    with stacks.of_child(pid), open(inner, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if data:
        answer: dict[str, Any] = json.loads(data)
        # Its threads are not in the way of a fork that happens before they exist.
        return {**answer, "threads": []} if answer["op"] == "loaded" else answer
    code = os.waitstatus_to_exitcode(status)
    how = (
        f"exited with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    )
    return {
        "op": "load_failed",
        "kind": "user",
        "message": f"the process that imported {config.app} {how}",
        "traceback": None,
    }


def _report(config: WorkerConfig, outer: int) -> int:
    _, answer = import_and_describe(config)
    with open(outer, "wb") as pipe:
        pipe.write(json.dumps(answer).encode())
    return 0


def handle_signals() -> None:
    """SIGINT goes to the whole foreground group, and is the supervisor's to interpret."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)


def _leave(_number: int, _frame: object) -> None:
    leave_with(lambda: 0)


def main(arguments: list[str] | None = None) -> Callable[[], int]:
    parser = argparse.ArgumentParser(prog="python -m taskiq_supervise.worker.zygote")
    parser.add_argument("--fd", type=int, required=True, help="a socket to the supervisor")
    parser.add_argument("--descriptors", type=int, default=0, help="the soft limit; 0: as it is")
    options = parser.parse_args(arguments)
    if options.descriptors:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.descriptors, hard))
    sock = socket.socket(fileno=options.fd)
    sock.set_inheritable(False)
    os.setpgid(0, 0)
    # It has nothing to give back, and may be stuck in the application's import. Workers are not
    # concerned: a fork clears it.
    set_death_signal(signal.SIGKILL)
    stacks.dump_to(stacks.STDERR)  # an import that hangs shows where
    handle_signals()

    def serve() -> int:
        Zygote(sock).serve()
        return 0

    return serve


if __name__ == "__main__":
    # Its atexit handlers are the application's, whose workers may still live.
    leave_with(main(sys.argv[1:]))

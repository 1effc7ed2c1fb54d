"""How tasks reach the workers of an application: a queue, a broker, or by way of a listener."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Listening:
    """What one process listens to, for all workers of a pool."""

    broker: str
    """As people know it: taskiq.ZeroMQBroker."""
    cls: str
    """The full name of its class."""
    reason: str
    """Why its workers do not listen themselves."""
    endpoints: tuple[str, ...]
    """One supervisor per host listens to each of them."""
    own: bool = False
    """The broker is one of ours: clients connect to the listener."""
    notes: tuple[str, ...] = ()
    """What else the log has to say, a line each."""
    store: Literal["shm", "zmq"] = "shm"
    """What lies between listener and workers: a queue in shared memory, or sockets."""


@dataclass(frozen=True, slots=True)
class Transport:
    kind: Literal["shm", "broker", "listener"]
    name: str
    """The queue's name, or the broker's class."""
    directory: str = ""
    geometry: Mapping[str, Any] = field(default_factory=dict)
    """Of a queue that does not exist yet; empty: the queue's default."""
    mode: int = 0o600
    group: str | int | None = None
    """Who shares the queue."""
    listener: Listening | None = None
    """For the kind `listener`: who fills the queue."""

    @property
    def has_queue(self) -> bool:
        """In shared memory, for us to look after."""
        return self.kind == "shm" or (self.listener is not None and self.listener.store == "shm")

    @property
    def joined_by_listener(self) -> bool:
        """Workers take tasks from the listener itself, and tell it how they ended."""
        return self.listener is not None and self.listener.store == "zmq"

    @property
    def broker_class(self) -> str | None:
        """Of a broker that is not our SharedMemoryBroker."""
        if self.listener is not None:
            return self.listener.cls
        return self.name if self.kind == "broker" else None

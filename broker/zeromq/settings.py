"""What the listener of a pool has to know of its ZeroMQBroker, checked."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskiq.serializers import PickleSerializer

from taskiq_supervise.broker.errors import UnsuitableBrokerError
from taskiq_supervise.broker.pickling import CloudpickleSerializer
from taskiq_supervise.broker.zeromq.addresses import CLASS, Endpoint

if TYPE_CHECKING:
    from taskiq.abc.serializer import TaskiqSerializer

    from taskiq_supervise.broker.zeromq.keys import AllowList, KeyPair

MAX_MESSAGE = 1024 * 1024 * 1024
"""Bytes that a message may have unless the broker says otherwise. Each takes memory of the
listener, before it is in the queue."""


@dataclass(frozen=True)
class ListenerSettings:
    """Where and how to listen.

    Attributes:
        bind: the address for ZeroMQ.
        notes: lines for the log: what is not as it was written.
        server_keys: the listener's own pair; None: no encryption.
        clients: who may connect, with keys; None without.
        max_message: bytes, the buffers included.
        max_deliveries: of messages that say nothing else; 0: the queue knows.
        result_ttl: seconds; None: the queue knows.
    """

    bind: str
    is_ipv6: bool
    notes: tuple[str, ...]
    server_keys: "KeyPair | None"
    clients: "AllowList | None"
    max_message: int
    max_deliveries: int
    result_ttl: float | None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """In the one form in which they are compared."""
        return (self.bind,)


def check_pickle(serializer: "TaskiqSerializer", endpoint: Endpoint, *, trusted: bool) -> None:
    """Unpickling runs what the pickle says, so the sender has to be known.

    trusted: it is, by its key. Raises UnsuitableBrokerError.
    """
    if trusted or endpoint.is_private:
        return
    if isinstance(serializer, (CloudpickleSerializer, PickleSerializer)):
        raise UnsuitableBrokerError(
            broker=CLASS,
            reason=f"{type(serializer).__name__} runs code that comes from {endpoint}, where "
            "everybody who reaches it could send some; give the broker keys and the list of its "
            "clients' (see `taskiq-supervise keygen`), use ipc:// with a socket file, which is "
            "its user's alone, or leave the serializer at JSON",
        )

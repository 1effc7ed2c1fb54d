"""Real supervisors, started as the end-to-end tests start them; queues as the queue's tests do."""

from tests.e2e.conftest import supervise
from tests.ipc.conftest import new_peer, open_queue

__all__ = ["new_peer", "open_queue", "supervise"]

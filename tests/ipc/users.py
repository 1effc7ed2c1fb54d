"""Processes of other users, for tests that are root (or root of a user namespace)."""

from tests.ipc.conftest import Peer

GROUP, OTHERS = 47_110, 47_120
ANN, BOB, STRANGER = 47_111, 47_112, 47_113

# Python itself may lie where only root can read: what is imported later is, beforehand.
IMPORTS = """
import logging, taskiq
from click.testing import CliRunner
from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.broker.progress import ProgressFolder
from taskiq_supervise.supervisor.commands import dead_commands
from taskiq_supervise.supervisor.commands import queue_commands
from taskiq_supervise.supervisor.commands import queue_facts
from taskiq_supervise.supervisor.commands import queue_render
from taskiq_supervise.supervisor.commands.cli import cli
from taskiq_supervise.supervisor.custody import Custody
from taskiq_supervise.supervisor.core.transport import Transport
from taskiq_supervise.ipc import removal
"""

# PR_SET_DUMPABLE: /proc/self is a user's own again, as it is in a process that was always his.
_BECOME = """
import ctypes, encodings.ascii, encodings.idna, encodings.utf_16_be, encodings.utf_32_be
os.umask(0o077)
os.setgroups({groups})
os.setresgid({user}, {user}, {user})
os.setresuid({user}, {user}, {user})
assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0
"""


def become(peer: Peer, user: int, *groups: int) -> None:
    """From now on it is that user, in his own group and those, with a umask that shares nothing."""
    peer.ask(_BECOME.format(groups=list(groups), user=user))

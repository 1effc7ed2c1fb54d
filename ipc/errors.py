"""What can go wrong with a queue, as exceptions that say what, with which value, and what to do.

They are defined apart from the queue because the C binding raises them too.
"""

from __future__ import annotations


class QueueError(Exception):
    """Base of everything the queue raises on purpose."""


class QueueFull(QueueError):
    """No free slot, or no free block for the payload."""


class AlreadyAccepted(QueueError):
    """The sender's message with this number, or a later one, is in the queue or was."""


class FilesFull(QueueFull):
    """No room for the payload's file: the file system is full, or a quota or limit is reached."""


class PayloadTooLarge(QueueError):
    """The payload is larger than the queue's largest block."""


class LeaseLost(QueueError):
    """The message was given to somebody else; this holder changes nothing any more (fenced)."""


class LeaseExpired(LeaseLost):
    """The message's time was over before it was started; those who wait for it have been told."""


class SegmentError(QueueError):
    """The segment cannot be created or attached: another version, damaged, foreign, no space."""


class QueueMissing(SegmentError):
    """There is no queue of this name, and none was to be made."""


class UnknownTask(QueueError):
    """The id is nowhere in the queue: never sent, or its outcome expired or was evicted."""


class QueueBusy(QueueError):
    """Another supervisor has this queue.

    Attributes:
        pid: process id of the other supervisor, 0 when it cannot be seen from here.
        label: the name of its instance, empty when unknown.
    """

    def __init__(self, message: str, *, pid: int, label: str) -> None:
        super().__init__(message)
        self.pid = pid
        self.label = label

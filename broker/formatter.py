"""FrameFormatter: between taskiq's messages and the bytes and buffers of the queue."""

import base64
import json
import time
from typing import TYPE_CHECKING

import pydantic
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.message import BrokerMessage, TaskiqMessage

from taskiq_supervise.broker.frames import MAGIC, is_default, pack, unpack
from taskiq_supervise.broker.labels import mark_delivered, settled

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker


class FrameFormatter(TaskiqFormatter):
    """The default formatter of SharedMemoryBroker; works on any taskiq broker.

    How messages look is told in `frames`. For a broker with a true attribute `takes_buffers`,
    large buffers go beside the message, and labels are written and read as told in `labels`.
    """

    def __init__(self, broker: "AsyncBroker") -> None:
        self.broker = broker
        self._is_ours: bool = getattr(broker, "takes_buffers", False)

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Raises ValueError (pydantic's, too) for arguments that cannot be serialized, and
        InvalidLabelError."""
        labels, types = message.labels, message.labels_types
        if self._is_ours:
            labels, types = settled(message, time.time())
        values = {
            "task_id": message.task_id,
            "task_name": message.task_name,
            "labels": labels,
            "labels_types": types,
            "args": message.args,
            "kwargs": message.kwargs,
        }
        if any(type(label) is bytes for label in labels.values()):
            values["labels"] = {key: _label(label) for key, label in labels.items()}
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=pack(values, ("args", "kwargs"), self.broker.serializer, beside=self._is_ours),
            labels=labels,
        )

    def loads(self, message: bytes) -> TaskiqMessage:
        """Raises ValueError (pydantic's, too) for what is not a message, and what unpickling
        raises."""
        loaded = self._loads(message)
        if self._is_ours:
            mark_delivered(loaded)
        return loaded

    def _loads(self, message: bytes) -> TaskiqMessage:
        if message[:4] != MAGIC and is_default(self.broker.serializer):
            try:
                return TaskiqMessage.model_validate_json(message)
            except pydantic.ValidationError:
                # Lone surrogates (a file name that is not UTF-8) are JSON for Python's parser
                # only; whatever else is wrong is said by the attempt below.
                return TaskiqMessage.model_validate(json.loads(message))
        return TaskiqMessage.model_validate(unpack(message, self.broker.serializer))


def _label(label: object) -> object:
    """As taskiq sends it: a message that is sent again has its labels parsed already."""
    return base64.b64encode(label).decode() if isinstance(label, bytes) else label

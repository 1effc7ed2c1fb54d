"""Queues and their messages as JSON objects: what the commands print with `--json`.

The tables for people are made of the same facts. Times are Unix seconds, sizes are bytes; null
stands for what is not known or does not apply.
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from taskiq_supervise.ipc import Role, SegmentError, UnknownTask
from taskiq_supervise.supervisor.commands.message_text import MessageText, jsonable, read_message

if TYPE_CHECKING:
    from pathlib import Path

    from taskiq_supervise.ipc import DeadReason, MessageView, Participant, TaskQueue

_BLOCK = 512
"""Bytes; the unit of st_blocks."""


def read(queue: TaskQueue, view: MessageView) -> tuple[MessageText, bytes]:
    """The message's content and its payload, both empty when it has left the queue meanwhile, or
    what holds its bytes is damaged."""
    try:
        payload, _ = queue.peek(view.ticket)
    except (UnknownTask, SegmentError) as error:
        return MessageText("unknown", preview=str(error)), b""
    return read_message(payload), payload


def message_facts(view: MessageView, text: MessageText) -> dict[str, Any]:
    """A line of a list."""
    return {
        "id": view.ticket.task_id,
        "task": text.task_name,
        "state": view.state.name.lower(),
        "reason": None if view.dead_reason is None else reason_name(view.dead_reason),
        "detail": view.detail,
        "attempts": view.attempts,
        "max_deliveries": view.max_deliveries or None,
        "worker": view.worker,
        "worker_pid": view.worker_pid,
        "priority": view.priority,
        "size": view.size,
        "created": view.created,
        "due": view.due,
        "expires": view.expires,
        "ended": view.ended,
    }


def content_facts(text: MessageText, payload: bytes) -> dict[str, Any]:
    """What else `show` tells. A payload that is not a message is there as it is, in base64."""
    is_message = text.format != "unknown"
    return {
        "format": text.format,
        "labels": jsonable(text.labels),
        "args": jsonable(text.args),
        "kwargs": jsonable(text.kwargs),
        "payload_base64": None if is_message else base64.b64encode(payload).decode(),
    }


def reason_name(reason: DeadReason) -> str:
    """As `--reason` takes it: unknown-task."""
    return reason.name.lower().replace("_", "-")


def queue_facts(queue: TaskQueue, living: list[Participant]) -> dict[str, Any]:
    """living: the participants whose process lives, this visit not among them."""
    return {
        "name": queue.name,
        "directory": str(queue.directory.parent),
        "error": None,
        "counts": asdict(queue.stats()),
        "size": allocated(queue.directory),
        "result_ttl": queue.result_ttl,
        "participants": [participant_facts(one) for one in living],
    }


def unreadable_facts(name: str, base: Path, error: str) -> dict[str, Any]:
    """A queue that cannot be opened, among others that can."""
    return {
        "name": name,
        "directory": str(base),
        "error": error,
        "counts": None,
        "size": None,
        "result_ttl": None,
        "participants": [],
    }


def participant_facts(one: Participant) -> dict[str, Any]:
    return {
        "role": next((role.name.lower() for role in Role if role == one.role), "unknown"),
        "pid": one.pid,
        "worker": one.tag - 1 if one.tag else None,
    }


def allocated(folder: Path) -> int:
    """Bytes of memory that the queue's files take."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * _BLOCK
        except FileNotFoundError:  # a doorbell or a payload that has just gone
            continue
    return total

"""What the labels of a task say to the queue: when it runs, until when, how early, how often.

taskiq turns labels into strings on their way, and puts them back into their types at the worker.
They are read when a task is sent, so that what makes no sense is an error for the one who wrote it.

A task that is sent again (a retry, a requeue) has the labels of the first time. What they said
about time must not count twice:

- `expires` in seconds is written into the message as the instant that it means.
- `delay` is marked in a message that was delivered; sent again with that mark, it has passed. It
  stays a number, because SmartRetryMiddleware reads it to set the next one, without a mark.
- `eta` has passed by itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from taskiq.labels import LabelType
from taskiq.message import TaskiqMessage

from taskiq_supervise.broker.errors import InvalidLabelError
from taskiq_supervise.ipc import DEFAULT_PRIORITY

MAX_DELIVERIES: Final = 255
"""What the queue counts up to."""
_LATEST: Final = 2.0**33
"""What the queue takes: until March 2242."""
_PASSED: Final = " s, passed"

_NAMES = frozenset(
    {"priority", "delay", "eta", "expires", "max_deliveries", "kiq_timeout", "hard_timeout"}
)
_SENT_AGAIN = frozenset({"_retries", "X-Taskiq-requeue"})
"""Labels that taskiq's retry middlewares and its `Context.requeue()` add."""

_INSTANT = "a datetime, an ISO 8601 time (2030-12-31T23:59:59+01:00)"
_DATETIME = TypeAdapter(datetime)


class PassedDelay(float):
    """The delay of a message that was delivered, in seconds.

    taskiq's kicker makes strings of labels, the mark included.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return f"{float(self)}{_PASSED}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the queue has to know of a message besides its bytes.

    priority: 0 … 9, higher first.
    due: Unix time before which it does not run; None: it may run at once.
    expires: Unix time after which it is not run any more.
    max_deliveries: how often it is started at most; 0: the broker knows.
    kiq_timeout: seconds that the sender waits for room, may be infinite; None: the broker knows.
    """

    priority: int = DEFAULT_PRIORITY
    due: float | None = None
    expires: float | None = None
    max_deliveries: int = 0
    kiq_timeout: float | None = None

    @classmethod
    def of(cls, labels: Mapping[str, Any], now: float, *, again: bool = False) -> "Schedule":
        """Reads the labels of a message that is sent now (Unix time).

        again: it has been delivered before; taskiq's own labels say so, too.
        Raises InvalidLabelError.
        """
        if labels.keys().isdisjoint(_NAMES):
            return _PLAIN
        again = again or not labels.keys().isdisjoint(_SENT_AGAIN)
        given = {name: labels[name] for name in _NAMES if not _is_none(labels.get(name))}
        hard_timeout(given, None)  # the worker's to read, and the sender's to be told about
        due = _due(given, now, again=again)
        expires = _expiry(given["expires"], now) if "expires" in given else None
        if due is not None and expires is not None and expires <= due and not again:
            raise _invalid("expires", given["expires"], "later than the task is due")
        return cls(
            priority=_integer("priority", given, 0, 9, DEFAULT_PRIORITY),
            due=due,
            expires=expires,
            max_deliveries=_integer("max_deliveries", given, 1, MAX_DELIVERIES, 0),
            # Who set it waits no more: a worker that sends the task again has no hurry.
            kiq_timeout=None if again else _patience(given),
        )


_PLAIN = Schedule()


def settled(message: TaskiqMessage, now: float) -> tuple[dict[str, Any], dict[str, int] | None]:
    """Labels and their types as they are written into a message that is sent now (Unix time).

    Raises InvalidLabelError.
    """
    value = message.labels.get("expires")
    if _is_none(value) or _number(value) is None:
        return message.labels, message.labels_types
    instant = datetime.fromtimestamp(_expiry(value, now), timezone.utc).isoformat()
    types = message.labels_types
    return (
        {**message.labels, "expires": instant},
        types if types is None else {**types, "expires": LabelType.STR.value},
    )


def mark_delivered(message: TaskiqMessage) -> None:
    """Marks what a message that was delivered says about its delay as passed."""
    value = message.labels.get("delay")
    seconds = None if value is None else _number(str(value).removesuffix(_PASSED))
    if seconds is None:
        return
    message.labels["delay"] = PassedDelay(seconds)
    if message.labels_types is not None:
        # taskiq would make a plain number of it.
        message.labels_types = {**message.labels_types, "delay": LabelType.ANY.value}


def hard_timeout(labels: Mapping[str, Any], default: float | None) -> float | None:
    """Seconds after which the worker of the task is replaced; None: never.

    Raises InvalidLabelError.
    """
    value = labels.get("hard_timeout")
    if _is_none(value):
        return default
    seconds = _number(value)
    if seconds is None or not 0 <= seconds <= _LATEST:
        raise _invalid("hard_timeout", value, "a number of seconds, 0 (no limit) or more")
    return seconds or None


def _due(given: Mapping[str, Any], now: float, *, again: bool) -> float | None:
    due = _instant("eta", given["eta"], "seconds since 1970") if "eta" in given else None
    if due is not None and due <= now:
        due = None
    if "delay" not in given:
        return due
    delay = str(given["delay"])
    if again and delay.endswith(_PASSED):
        return due
    seconds = _number(delay.removesuffix(_PASSED))
    if seconds is None or seconds < 0 or now + seconds > _LATEST:
        raise _invalid("delay", delay, "a number of seconds, 0 or more")
    if "eta" in given and not (again and due is None):
        raise _invalid("delay", delay, "to be used together with eta")
    return now + seconds if seconds else None


def _expiry(value: object, now: float) -> float:
    seconds = _number(value)
    if seconds is None:
        return _instant("expires", value, "a number of seconds from now")
    if seconds <= 0 or now + seconds > _LATEST:
        raise _invalid("expires", value, "more than 0 seconds, or an instant")
    return now + seconds


def _instant(name: str, value: object, number: str) -> float:
    """Unix time; a time without a zone is local. number: what a number would be."""
    allowed = f"{_INSTANT} or {number}"
    instant = _number(value)
    if instant is None:
        try:
            instant = _DATETIME.validate_python(value).timestamp()
        except (ValidationError, OverflowError, ValueError, OSError):
            raise _invalid(name, value, allowed) from None
    if instant > _LATEST:
        raise _invalid(name, value, f"{allowed}, before the year 2242")
    return instant


def _integer(name: str, given: Mapping[str, Any], low: int, high: int, default: int) -> int:
    if name not in given:
        return default
    try:
        number = int(str(given[name]))
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise _invalid(name, given[name], f"an integer from {low} to {high}")
    return number


def _patience(given: Mapping[str, Any]) -> float | None:
    if "kiq_timeout" not in given:
        return None
    value = given["kiq_timeout"]
    if str(value) in {"inf", "infinity"}:
        return math.inf
    seconds = _number(value)
    if seconds is None or seconds < 0:
        raise _invalid("kiq_timeout", value, "a number of seconds, 0 or more")
    return seconds


def _number(value: object) -> float | None:
    """A finite number, however it is written; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(str(value))
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_none(value: object) -> bool:
    """Not given; as `with_labels(eta=None)` arrives, too."""
    return value is None or value == "None"


def _invalid(label: str, value: object, allowed: str) -> InvalidLabelError:
    return InvalidLabelError(label=label, value=str(value), allowed=allowed)

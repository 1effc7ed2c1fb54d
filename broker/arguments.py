"""What our brokers are constructed with: checked where it is written, not where it is used."""

import math

from taskiq_supervise.broker.labels import MAX_DELIVERIES


def deliveries(value: object) -> int:
    """How often a task may be started; None: 0, which means that the queue knows. ValueError."""
    if value is None:
        return 0
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_DELIVERIES:
        raise ValueError(f"max_deliveries is {value!r}, not a number from 1 to {MAX_DELIVERIES}")
    return number


def seconds(name: str, value: float | None) -> float | None:
    """Raises ValueError."""
    if value is None or 0 <= value < math.inf:
        return value
    raise ValueError(f"{name} is {value!r}, not a number of seconds from 0 on, or None")

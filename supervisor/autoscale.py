"""How many workers there should be, between two bounds, judged by samples of the load.

Growing is soon and in steps of up to half of the pool, since tasks are waiting and a fork costs
milliseconds. Shrinking is slow and one by one, since a worker that idles costs little and one that
is missed costs latency. Between the two lies a band in which nothing happens: who is more than 80 %
busy grows to 65 %, and one leaves only if the others would still be at most 50 % busy without it.
So no constant load makes the pool go up and down. A load that changes in step with our patience
could; so when a shrinking is soon regretted, the next one takes twice as long to come.
"""

import math
from dataclasses import dataclass

INTERVAL = 0.5
"""Seconds between samples: three in a row make the second that pressure has to last."""

_GROW_AFTER = 1.0
_UNANSWERED = 30.0
"""Seconds of pressure after which a worker that is not READY yet is waited for no more."""
_SHRINK_AFTER = 30.0
_SHRINK_AFTER_LIMIT = 480.0
_BUSY = 0.8
_AFTER_GROWING = 0.65
_AFTER_SHRINKING = 0.5
_GAP = 5.0
"""Seconds without a sample; what was seen before is forgotten then."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The load at one moment."""

    backlog: int | None
    """Tasks that could run now and wait for a worker; None: the broker cannot say."""
    busy: float
    """Tasks in flight as a share of what the READY workers may have in flight, 0 to 1."""
    workers: int
    """READY; those who drain are not."""
    target: int
    """How many there are to be at the moment, whoever decided that."""
    now: float
    """Monotonic seconds."""


class Autoscaler:
    """Call `decide` with a sample every INTERVAL; deterministic, no clock of its own."""

    def __init__(self, minimum: int, maximum: int) -> None:
        if not 1 <= minimum <= maximum:
            raise ValueError(f"cannot scale between {minimum} and {maximum} workers")
        self._minimum = minimum
        self._maximum = maximum
        self._patience = _SHRINK_AFTER
        self._shrunk_at: float | None = None
        self._pressed_since: float | None = None
        self._quiet_since: float | None = None
        self._complete_since: float | None = None
        self._last: Sample | None = None

    def decide(self, sample: Sample) -> int:
        """The new target, within the bounds; the old one if nothing is to change."""
        last, self._last = self._last, sample
        if last is None or sample.now - last.now > _GAP or sample.target != last.target:
            self._pressed_since = self._quiet_since = self._complete_since = None
        bounded = min(max(sample.target, self._minimum), self._maximum)
        if bounded != sample.target:
            return bounded
        now = sample.now
        pressed = bool(sample.backlog) or sample.busy > _BUSY
        quiet = not sample.backlog and _fits_without_one(sample)
        self._pressed_since = _since(self._pressed_since, now, pressed)
        self._quiet_since = _since(self._quiet_since, now, quiet)
        # Workers that are still booting are the answer to pressure that was there before.
        self._complete_since = _since(self._complete_since, now, sample.workers >= sample.target)
        if _lasted(self._pressed_since, now, _GROW_AFTER) and (
            _lasted(self._complete_since, now, _GROW_AFTER)
            or _lasted(self._pressed_since, now, _UNANSWERED)
        ):
            return self._grow(sample)
        if _lasted(self._quiet_since, now, self._patience):
            return self._shrink(sample)
        return sample.target

    def _grow(self, sample: Sample) -> int:
        target = min(sample.target + _step(sample), self._maximum)
        if target > sample.target and self._shrunk_at is not None:
            regretted = sample.now - self._shrunk_at < 2 * self._patience
            longer = min(2 * self._patience, _SHRINK_AFTER_LIMIT)
            self._patience = longer if regretted else _SHRINK_AFTER
            self._shrunk_at = None
        return target

    def _shrink(self, sample: Sample) -> int:
        target = max(sample.target - 1, self._minimum)
        if target < sample.target:
            if self._shrunk_at is not None:  # the one before was not regretted
                self._patience = max(self._patience / 2, _SHRINK_AFTER)
            self._shrunk_at = sample.now
        return target


def _step(sample: Sample) -> int:
    """How many more: as the load asks for, at least one, at most half of what there is."""
    wanted = math.ceil(sample.workers * sample.busy / _AFTER_GROWING) - sample.target
    return min(max(wanted, sample.backlog or 0, 1), max(sample.target // 2, 1))


def _fits_without_one(sample: Sample) -> bool:
    if sample.target == 1:
        return False
    return sample.busy * sample.workers / (sample.target - 1) <= _AFTER_SHRINKING


def _since(since: float | None, now: float, holds: bool) -> float | None:
    if not holds:
        return None
    return now if since is None else since


def _lasted(since: float | None, now: float, time: float) -> bool:
    return since is not None and now - since >= time

"""Which workers hang: event loops that have not turned for too long, judged by their heartbeats.

A worker's loop writes the time into the board once a second. Nobody watches that second by second:
the next look is due when the first limit could be exceeded, or after half of the shortest limit, so
that an idle pool costs a wake-up every five seconds with a limit of ten.

A heartbeat stands still as well when nothing ran at all: a paused virtual machine, a frozen cgroup,
the whole service stopped. So a worker is accused only of what we were awake to see: since its last
heartbeat, all our looks must have come in time, and there is at least one in each half of a limit.
A look that comes late proves nothing about anybody, and measuring begins anew with it. (A suspended
machine is not even late: CLOCK_MONOTONIC stops with it.)
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

_LATE = 1.0
"""Seconds; a look that comes later than that after its time has missed something."""
_RECOVERY = 1.0
"""Seconds between looks while somebody hangs: how soon it is seen to be over."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Hang(Generic[Key]):
    """Its loop has not turned for so many seconds."""

    worker: Key
    seconds: float
    too_long: bool
    """For `timeout`, and not just for `warn`."""


@dataclass(frozen=True, slots=True)
class Recovery(Generic[Key]):
    """Its loop turns again; it had been reported."""

    worker: Key
    seconds: float
    """For which it had not."""


@dataclass(slots=True)
class _Pulse:
    beat: float
    """The last heartbeat that was seen."""
    since: float
    """Measured from here: that heartbeat, or the look from which measuring began (anew)."""
    hung: bool = False
    too_long: bool = False


class HealthWatch(Generic[Key]):
    """Remembers the pulse of each worker between looks. All times are of one monotonic clock.

    Limits of less than two heartbeats (2 s) accuse the healthy. Each kind of news comes once per
    hang: `Hang` at `warn`, `Hang` with too_long at `timeout` (only that if it is not beyond
    `warn`), and `Recovery` if there was a `Hang` before.
    """

    def __init__(self, warn: float | None, timeout: float | None) -> None:
        self._warn = warn
        self._timeout = timeout
        limits = [limit for limit in (warn, timeout) if limit is not None]
        self._period = min(limits) / 2 if limits else None
        self._pulses: dict[Key, _Pulse] = {}
        self.next_look: float | None = None
        """When `look` is to be called next; None: nobody is watched."""

    def look(self, beats: Mapping[Key, float], now: float) -> list[Hang[Key] | Recovery[Key]]:
        """What is news, given the last heartbeat of everybody who is to be judged.

        Somebody new is measured from now on, and who is missing is forgotten: so leave out workers
        that are stopped by a signal, and look when one has become READY.
        """
        if self._period is None:
            return []
        late = self.next_look is not None and now > self.next_look + min(_LATE, self._period)
        self._pulses = {key: pulse for key, pulse in self._pulses.items() if key in beats}
        news: list[Hang[Key] | Recovery[Key]] = []
        for key, beat in beats.items():
            pulse = self._pulses.get(key)
            if pulse is None:
                self._pulses[key] = _Pulse(beat, since=now)
            elif beat != pulse.beat:
                if pulse.hung:
                    news.append(Recovery(key, max(0.0, beat - pulse.since)))
                # A beat from before a look that came late says nothing about the time since.
                since = now if late else max(beat, pulse.since)
                self._pulses[key] = _Pulse(beat, since)
            elif late:
                pulse.since = now
            else:
                news += self._judge(key, pulse, now)
        self.next_look = self._next(now)
        return news

    def _judge(self, key: Key, pulse: _Pulse, now: float) -> list[Hang[Key] | Recovery[Key]]:
        seconds = now - pulse.since
        if not pulse.too_long and self._timeout is not None and now >= pulse.since + self._timeout:
            pulse.hung = pulse.too_long = True
            return [Hang(key, seconds, too_long=True)]
        if not pulse.hung and self._warn is not None and now >= pulse.since + self._warn:
            pulse.hung = True
            return [Hang(key, seconds, too_long=False)]
        return []

    def _next(self, now: float) -> float | None:
        if not self._pulses or self._period is None:
            return None
        soonest = now + self._period
        for pulse in self._pulses.values():
            if pulse.hung:
                soonest = min(soonest, now + _RECOVERY)
            if self._warn is not None and not pulse.hung:
                soonest = min(soonest, pulse.since + self._warn)
            if self._timeout is not None and not pulse.too_long:
                soonest = min(soonest, pulse.since + self._timeout)
        return soonest

"""When to start a worker again, as data and pure functions: time and randomness are passed in.

A first crash costs nothing: the worker is replaced at once. A worker that keeps failing is replaced
ever more slowly, with full jitter (uniform between nothing and the limit) so that a pool which lost
the same server does not come back in step. One that works for a while and then dies, again and
again, never reaches the slow end that way; a limit on restarts in a window catches it, per worker
slot and for the pool. Exceeding a limit makes restarts slower and is said aloud. It never ends the
supervisor: OTP gives up so that the level above can act, but above us are a person or a service
manager, who would only start us again.
"""

import enum
from dataclasses import dataclass

# 2**16 * base is beyond every sensible cap; unbounded, a year of failures would overflow a float.
_MAX_DOUBLINGS = 16


class PolicyError(ValueError):
    """A policy that contradicts itself; the message names the field and its value."""


class StopLevel(enum.IntEnum):
    """How hard a stop is asked for; a later request never softens an earlier one."""

    DRAIN = 1
    """Stop taking tasks, finish what runs within the graceful timeout, give the rest back."""
    STOP = 2
    """Give back now."""
    KILL = 3
    """SIGKILL at once; what ran is given back and not held against it."""


def stop_level(requests: int, hardkill_count: int) -> StopLevel:
    """What the `requests`-th SIGTERM or SIGINT (1, 2, ...) asks for."""
    if requests >= hardkill_count:
        return StopLevel.KILL
    return StopLevel.DRAIN if requests <= 1 else StopLevel.STOP


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """All times in seconds. `*_limit` counts restarts within `window`."""

    base: float = 0.1
    cap: float = 30.0
    steady: float = 60.0
    window: float = 60.0
    slot_limit: int = 300
    pool_limit: int = 1000

    def __post_init__(self) -> None:
        for name in ("base", "cap", "window"):
            if getattr(self, name) <= 0:
                raise PolicyError(f"{name} must be greater than 0, not {getattr(self, name)}")
        if self.steady < 0:
            raise PolicyError(f"steady must not be negative, not {self.steady}")
        if self.base > self.cap:
            raise PolicyError(f"base ({self.base}) must not exceed cap ({self.cap})")
        if not 1 <= self.slot_limit <= self.pool_limit:
            raise PolicyError(
                f"1 <= slot_limit <= pool_limit must hold, not {self.slot_limit}, {self.pool_limit}"
            )


@dataclass(frozen=True, slots=True)
class History:
    """What the policy remembers of one worker slot (or of the zygote)."""

    failures: int = 0
    """In a row: a completed task or a steady minute ends the row."""
    restarts: tuple[float, ...] = ()
    """When it was replaced unplanned, oldest first, as far back as the window reaches."""

    def recent(self, policy: RestartPolicy, now: float) -> int:
        return sum(now - then < policy.window for then in self.restarts)


@dataclass(frozen=True, slots=True)
class Verdict:
    delay: float
    """Seconds until the next start; 0 means at once."""
    quarantined: bool
    """A limit on restarts was exceeded."""
    history: History


def backoff(policy: RestartPolicy, failures: int, jitter: float) -> float:
    """The wait after the `failures`-th failure in a row; `jitter` is uniform in [0, 1)."""
    if failures <= 1:
        return 0.0
    doublings = min(failures - 2, _MAX_DOUBLINGS)
    return jitter * min(policy.cap, policy.base * 2.0**doublings)


def judge(
    policy: RestartPolicy,
    history: History,
    *,
    failed: bool,
    proven: bool,
    pool_recent: int,
    now: float,
    jitter: float,
) -> Verdict:
    """Decide on the replacement of something that has just ended unplanned.

    `failed`: it crashed or did not boot, as opposed to leaving in good order by itself. `proven`:
    before that it completed a task or was up for `policy.steady` seconds. `pool_recent`: restarts
    in the window in the whole pool, without this one.
    """
    failures = (0 if proven else history.failures) + failed
    kept = tuple(then for then in history.restarts if now - then < policy.window)
    # The last `slot_limit` decide; more would only grow under a jumping clock.
    restarts = (*kept, now)[-(policy.slot_limit + 1) :]
    after = History(failures=failures, restarts=restarts)
    if len(restarts) > policy.slot_limit or pool_recent + 1 > policy.pool_limit:
        # Never less than half the cap: full jitter could let a quarantined one through at once.
        return Verdict(policy.cap * (0.5 + jitter / 2), True, after)
    delay = backoff(policy, failures, jitter) if failed else 0.0
    return Verdict(delay, False, after)


def lower(limit: float, jitter: float, drawn: float) -> float:
    """A limit of a worker's life, less a random part: `drawn` is uniform in [0, 1).

    Lower, never higher: somebody has reckoned with the limit.
    """
    return limit * (1 - jitter * drawn)

"""Whether an instance lives, and whether it is ready: for who restarts it, and who sends it work.

Both are read from what `status` says. Live: the supervisor answers. What becomes of workers is its
own business, and restarting all of it would only add to that. Ready: each pool has been complete
once, has a worker that takes tasks now, and nothing of it stops.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    ok: bool
    reason: str
    """One line."""


def live(status: Mapping[str, Any]) -> Verdict:
    """status: as `client.statuses()` has it, that of one that does not answer included."""
    if status.get("state") == "unresponsive":
        return Verdict(False, str(status["message"]))
    return Verdict(True, f"the supervisor answers, pid {status['pid']}")


def ready(status: Mapping[str, Any]) -> Verdict:
    """status: as for `live`."""
    if not live(status).ok:
        return live(status)
    for pool in status["pools"]:
        verdict = _pool_ready(
            pool, [one for one in status["workers"] if one["pool"] == pool["name"]]
        )
        if not verdict.ok:
            name = pool["name"]
            return Verdict(False, f"pool {name}: {verdict.reason}" if name else verdict.reason)
    return Verdict(True, "every pool has a worker that takes tasks")


def _pool_ready(pool: Mapping[str, Any], workers: list[Mapping[str, Any]]) -> Verdict:
    if pool["state"] != "running":
        return Verdict(False, pool["message"] or f"it is {pool['state']}")
    if not any(worker["state"] == "ready" for worker in workers):
        return Verdict(False, pool["message"] or "no worker is ready")
    listener = pool.get("listener")
    if listener is not None and listener["state"] != "ready":
        return Verdict(False, f"the listener is {listener['state']}")
    return Verdict(True, "")


PROBES = {"live": live, "ready": ready}

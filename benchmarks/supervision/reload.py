"""Reload (SIGHUP) while work comes in all the time: what is lost, done twice, and not done for how
long."""

from __future__ import annotations

import signal
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from benchmarks.ledger import Account, settle
from benchmarks.machine import table
from benchmarks.process import ContestantFailed
from benchmarks.supervision import contestants as who
from benchmarks.supervision.contestants import WORKERS, Contestant, Weight, up
from benchmarks.supervision.turns import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.figure import Effort

IMPORT = Weight(seconds=1.2)
ROUNDS = 3
BUDGET = 120.0
"""Seconds."""
LANES = 12
SECONDS_OF_A_TASK = 0.005
WARM, AFTER = 1.0, 1.0
"""Seconds under load before the signal, and after the last new worker is READY."""
GRACE = 5.0
"""Seconds without any progress after which work that is not done counts as lost."""
NOTES = (
    (
        f"Four workers, {LANES} clients that each want one task of {SECONDS_OF_A_TASK * 1e3:.0f} "
        "ms after the other; an application that takes 1.2 s to import. Every run is a line in "
        "a ledger: lost has none, doubled has two."
    ),
    (
        "Time: from SIGHUP until four new workers are ready. Pause: the longest time without a "
        "task that ends, from the signal until one second after that."
    ),
    (
        "`taskiq worker`: on the same broker. gunicorn: without --preload, with which it does "
        "not reload. A request that fails and is not in the ledger counts as lost."
    ),
    (
        "Celery is left out: with files instead of a server for its broker, what it loses need "
        "not be its own doing."
    ),
)


@dataclass(frozen=True)
class Reload:
    account: Account
    took: float
    """Seconds."""


@dataclass
class Reloads:
    """The table of all rounds; shown and saved as a Figure is."""

    rounds: int
    notes: Sequence[str]
    measured: dict[str, list[Reload]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        header = ("", "accepted", "lost", "doubled", "pause, ms: median", "longest", "time, s")
        rows = []
        for name, reloads in self.measured.items():
            if not reloads:
                continue
            accounts = [reload.account for reload in reloads]
            pauses = [account.longest_pause * 1e3 for account in accounts]
            rows.append(
                (
                    name,
                    f"{sum(account.accepted for account in accounts):,}",
                    str(sum(account.lost for account in accounts)),
                    str(sum(account.doubled for account in accounts)),
                    f"{statistics.median(pauses):,.0f}",
                    f"{max(pauses):,.0f}",
                    f"{statistics.median(reload.took for reload in reloads):.1f}",
                )
            )
        failed = [f"{name}: {why}" for name, why in self.failed.items()]
        notes = "".join(f"- {note}\n" for note in (*self.notes, *failed))
        return f"### Reload under load, rounds: {self.rounds}\n\n{table(header, rows)}\n{notes}"

    def as_json(self) -> dict[str, object]:
        return {
            "title": "Reload under load",
            "contestants": {
                name: [asdict(reload) for reload in reloads]
                for name, reloads in self.measured.items()
            },
            "failed": self.failed,
        }


def once(contestant: Contestant) -> Reload:
    with up(contestant, IMPORT) as round_:
        stopped = threading.Event()
        accepted: list[int] = []
        loading = threading.Thread(
            target=_load, args=(round_.client.load, accepted, stopped), daemon=True
        )
        loading.start()
        time.sleep(WARM)
        round_.running.skip()
        began = ended = time.monotonic()
        try:
            round_.running.signal(signal.SIGHUP)
            for _ in range(WORKERS):
                ended, _ = round_.running.until(contestant.ready)
            time.sleep(AFTER)
            until = time.monotonic()
        finally:
            stopped.set()
            loading.join()
        _wait_for_the_rest(round_.ledger, len(accepted))
        return Reload(settle(round_.ledger, accepted, began, until), ended - began)


def _load(
    load: Callable[[int, float, Callable[[], bool]], list[int]],
    accepted: list[int],
    stopped: threading.Event,
) -> None:
    accepted += load(LANES, SECONDS_OF_A_TASK, stopped.is_set)


def _wait_for_the_rest(ledger: Path, accepted: int) -> None:
    done, since = -1, time.monotonic()
    while time.monotonic() - since < GRACE:
        lines = ledger.read_text().count("\n")
        if lines >= accepted:
            return
        if lines != done:
            done, since = lines, time.monotonic()
        time.sleep(0.05)


def measure(effort: Effort) -> list[Reloads]:
    there, absent = who.present(
        [
            who.supervise(),
            who.taskiq_worker(),
            who.gunicorn(preload=False),
            who.uwsgi(),
        ]
    )
    rounds = effort.rounds or ROUNDS
    result = Reloads(0, (*NOTES, *absent), {contestant.name: [] for contestant in there})
    clock = Clock(BUDGET)
    while result.rounds < rounds and clock.has_time_after(result.rounds):
        for contestant in there:
            if contestant.name in result.failed:
                continue
            print(
                f"reload: round {result.rounds + 1} of {rounds}: {contestant.name}", file=sys.stderr
            )
            try:
                result.measured[contestant.name].append(once(contestant))
            except (ContestantFailed, TimeoutError) as error:
                result.failed[contestant.name] = str(error).splitlines()[0]
                print(error, file=sys.stderr)
        result.rounds += 1
    return [result]

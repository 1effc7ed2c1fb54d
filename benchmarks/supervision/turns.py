"""Rounds in turn, of contestants that may fail: who does is named, and the others go on."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from benchmarks.process import ContestantFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.figure import Figure


class Clock:
    """Whether there is time for one more round, by how long those before took."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._seconds = seconds

    def has_time_after(self, rounds: int) -> bool:
        if not rounds:
            return True
        used = time.monotonic() - self._began
        return used + used / rounds <= self._seconds


def take_turns(
    figure: Figure,
    contestants: Mapping[str, Callable[[], Sequence[float]]],
    rounds: int,
    seconds: float,
) -> Figure:
    """Each contestant once per round. One that fails keeps the rounds that it has.

    seconds: no round is begun that would end later. `{rounds}` in the title: how many there were.
    """
    clock = Clock(seconds)
    turn = 0
    measured: dict[str, list[list[float]]] = {name: [] for name in contestants}
    failed: dict[str, str] = {}
    while turn < rounds and clock.has_time_after(turn):
        for name, once in contestants.items():
            if name in failed:
                continue
            print(f"{figure.name}: round {turn + 1} of {rounds}: {name}", file=sys.stderr)
            try:
                measured[name].append(list(once()))
            except (ContestantFailed, TimeoutError) as error:
                print(error, file=sys.stderr)
                failed[name] = f"{name} failed in round {turn + 1}: {str(error).splitlines()[0]}"
        turn += 1
    figure.title = figure.title.format(rounds="1 round" if turn == 1 else f"{turn} rounds")
    figure.measured = {name: samples for name, samples in measured.items() if samples}
    figure.notes = (*figure.notes, *failed.values())
    if figure.base not in figure.measured:
        figure.base = None
    return figure

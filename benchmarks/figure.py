"""One figure: contestants that take turns in rounds, and the table that comes of it.

A contestant is a function that sets everything up, measures one round in processes of its own and
leaves nothing behind; it returns the round's samples. Ratios are of the medians in the table.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.machine import table
from benchmarks.rounds import median_of_rounds


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds, and the share of each round's full count."""

    rounds: int | None = None
    share: float = 1.0

    def of(self, count: int, least: int = 2) -> int:
        return max(least, round(count * self.share))


@dataclass(frozen=True)
class Unit:
    """How samples are shown.

    Attributes:
        scale: what a sample is multiplied with.
        percentiles: the columns; one number per sample and round: 50 alone.
        higher_is_better: rates; else times.
    """

    name: str
    scale: float = 1.0
    digits: int = 0
    percentiles: tuple[int, ...] = (50,)
    higher_is_better: bool = False


Once = Callable[[], Sequence[float]]


@dataclass
class Figure:
    """What was measured.

    Attributes:
        notes: how each contestant does it; Markdown, one item each.
        base: the contestant to which the others are compared.
        measured: for each contestant the samples of each round.
    """

    name: str
    title: str
    unit: Unit
    notes: Sequence[str]
    base: str | None
    measured: dict[str, list[list[float]]] = field(default_factory=dict)

    def run(self, contestants: Mapping[str, Once], rounds: int) -> Figure:
        """Each contestant once per round, in turn."""
        self.measured = {name: [] for name in contestants}
        for turn in range(rounds):
            for name, once in contestants.items():
                print(f"{self.name}: round {turn + 1} of {rounds}: {name}", file=sys.stderr)
                self.measured[name].append(list(once()))
        return self

    def value(self, name: str, percent: int) -> float:
        """The percentile of each round, and of these the median."""
        rounds = self.measured[name]
        if all(len(one) == 1 for one in rounds):
            return statistics.median(one[0] for one in rounds)
        return median_of_rounds(rounds, percent)

    def ratio(self, name: str) -> float:
        """How many times better the base is (rates: base / this, times: this / base)."""
        assert self.base is not None
        this, base = self.value(name, 50), self.value(self.base, 50)
        return base / this if self.unit.higher_is_better else this / base

    def markdown(self) -> str:
        unit = self.unit
        single = unit.percentiles == (50,)
        header = ["", *(unit.name if single else f"p{p}, {unit.name}" for p in unit.percentiles)]
        if self.base is not None:
            kind = "base / this" if unit.higher_is_better else "this / base"
            header.append(f"{kind}")
        rows = []
        for name in self.measured:
            numbers = [
                f"{self.value(name, percent) * unit.scale:,.{unit.digits}f}"
                for percent in unit.percentiles
            ]
            if self.base is not None:
                numbers.append("base" if name == self.base else f"{self.ratio(name):.2f}")
            rows.append((name, *numbers))
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"### {self.title}\n\n{table(header, rows)}\n{notes}"

    def as_json(self) -> dict[str, object]:
        return {
            "title": self.title,
            "unit": self.unit.name,
            "base": self.base,
            "contestants": {
                name: {
                    **{
                        f"p{percent}": self.value(name, percent) * self.unit.scale
                        for percent in self.unit.percentiles
                    },
                    "ratio": None if self.base is None else self.ratio(name),
                    "rounds": [
                        [sample * self.unit.scale for sample in one] for one in self.measured[name]
                    ],
                }
                for name in self.measured
            },
        }

"""A command that measures figures, prints them as Markdown and saves them as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.figure import Effort
from benchmarks.machine import describe


class Shown(Protocol):
    """What a measurement comes to: a Figure, or a table of another kind."""

    def markdown(self) -> str: ...

    def as_json(self) -> dict[str, object]: ...


Measure = Callable[[Effort], Sequence[Shown]]


@dataclass(frozen=True)
class Command:
    """`python -m <module> [name…]`.

    Attributes:
        about: for --help.
        measures: by name, in the order in which all are measured.
        packages: those whose versions the numbers depend on.
    """

    module: str
    about: str | None
    measures: Mapping[str, Measure]
    packages: Sequence[str]

    def arguments(self, argv: Sequence[str] | None) -> argparse.Namespace:
        names = ", ".join(self.measures)
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=self.about)
        parser.add_argument("names", nargs="*", metavar="name", help=f"of {names}; all")
        parser.add_argument(
            "--rounds", type=int, help="rounds of each figure; default: its own number"
        )
        parser.add_argument(
            "--share",
            type=float,
            default=1.0,
            help="of the full counts that a round has; default: 1",
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
        parsed = parser.parse_args(argv)
        unknown = set(parsed.names) - set(self.measures)
        if unknown:
            parser.error(f"no figure {', '.join(sorted(unknown))}: use {names}")
        if parsed.rounds is not None and parsed.rounds < 1:
            parser.error(f"--rounds {parsed.rounds}: use 1 or more")
        if not 0 < parsed.share <= 1:
            parser.error(f"--share {parsed.share}: use more than 0, at most 1")
        return parsed

    def run(self, argv: Sequence[str] | None = None) -> None:
        """argv: the arguments; None: those of this process."""
        options = self.arguments(argv)
        machine = describe(*self.packages)
        print(machine)
        effort = Effort(options.rounds, options.share)
        figures: list[Shown] = []
        for name in options.names or self.measures:
            for figure in self.measures[name](effort):
                print(figure.markdown(), flush=True)
                figures.append(figure)
        if options.json is not None:
            content = {"machine": machine, "figures": [figure.as_json() for figure in figures]}
            options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")

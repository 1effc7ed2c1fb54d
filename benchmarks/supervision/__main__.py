"""Figures of the supervisor and its peers as Markdown: `python -m benchmarks.supervision [name…]`.

Peers that are not installed are left out and named; the extra `bench` has them.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ipc.figure import Effort
from benchmarks.machine import describe
from benchmarks.supervision import death, memory, reload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MEASURES: dict[str, Callable[[Effort], Sequence[Any]]] = {
    "death": death.measure,
    "reload": reload.measure,
    "memory": memory.measure,
    "rss": memory.measure_roots,
}
PACKAGES = ("gunicorn", "uWSGI", "celery", "numpy", "pandas")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.supervision", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(MEASURES)}; all")
    parser.add_argument("--rounds", type=int, help="rounds of each figure; default: its own number")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the full counts that a round has; default: 1"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    parsed = parser.parse_args(argv)
    unknown = set(parsed.names) - set(MEASURES)
    if unknown:
        parser.error(f"no figure {', '.join(sorted(unknown))}: use {', '.join(MEASURES)}")
    if parsed.rounds is not None and parsed.rounds < 1:
        parser.error(f"--rounds {parsed.rounds}: use 1 or more")
    if not 0 < parsed.share <= 1:
        parser.error(f"--share {parsed.share}: use more than 0, at most 1")
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    # So that contestants are ended too: they are in sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    machine = describe(*PACKAGES)
    print(machine)
    figures: list[Any] = []
    for name in options.names or MEASURES:
        for figure in MEASURES[name](Effort(options.rounds, options.share)):
            print(figure.markdown(), flush=True)
            figures.append(figure)
    if options.json is not None:
        content = {"machine": machine, "figures": [figure.as_json() for figure in figures]}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

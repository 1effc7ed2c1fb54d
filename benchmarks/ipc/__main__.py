"""Figures of the queue and its peers as Markdown: `python -m benchmarks.ipc [name…]`."""

from __future__ import annotations

import argparse
import json
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.ipc.figure import Effort
from benchmarks.machine import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.ipc.figure import Figure

NAMES = ("oneway", "pingpong", "large", "death", "repair")
PACKAGES = ("pyzmq", "faster-fifo", "numpy")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ipc", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--rounds", type=int, help="rounds of each figure; default: its own number")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the full counts that a round has; default: 1"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    parsed = parser.parse_args(argv)
    unknown = set(parsed.names) - set(NAMES)
    if unknown:
        parser.error(f"no figure {', '.join(sorted(unknown))}: use {', '.join(NAMES)}")
    if parsed.rounds is not None and parsed.rounds < 1:
        parser.error(f"--rounds {parsed.rounds}: use 1 or more")
    if not 0 < parsed.share <= 1:
        parser.error(f"--share {parsed.share}: use more than 0, at most 1")
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    logging.getLogger("taskiq_supervise").setLevel(logging.ERROR)  # it tells of each death
    machine = describe(*PACKAGES)
    print(machine)
    effort = Effort(options.rounds, options.share)
    figures: list[Figure] = []
    for name in options.names or NAMES:
        for figure in import_module(f"benchmarks.ipc.{name}").measure(effort):
            print(figure.markdown(), flush=True)
            figures.append(figure)
    if options.json is not None:
        content = {"machine": machine, "figures": [figure.as_json() for figure in figures]}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

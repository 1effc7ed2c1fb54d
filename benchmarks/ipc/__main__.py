"""Figures of the queue and its peers as Markdown: `python -m benchmarks.ipc [name…]`."""

from __future__ import annotations

import logging
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from benchmarks.command import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.figure import Effort, Figure

NAMES = ("oneway", "pingpong", "large", "death", "repair")
PACKAGES = ("pyzmq", "faster-fifo", "numpy")


def measure(name: str, effort: Effort) -> Sequence[Figure]:
    """Imports the figure, and the packages that it needs, only now."""
    figures: Sequence[Figure] = import_module(f"benchmarks.ipc.{name}").measure(effort)
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    logging.getLogger("taskiq_supervise").setLevel(logging.ERROR)  # it tells of each death
    measures = {name: partial(measure, name) for name in NAMES}
    Command("benchmarks.ipc", __doc__, measures, PACKAGES).run(argv)


if __name__ == "__main__":
    main()

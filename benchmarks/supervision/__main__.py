"""Figures of the supervisor and its peers as Markdown: `python -m benchmarks.supervision [name…]`.

Peers that are not installed are left out and named; the extra `bench` has them.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from benchmarks.command import Command
from benchmarks.supervision import death, memory, reload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.command import Measure

MEASURES: dict[str, Measure] = {
    "death": death.measure,
    "reload": reload.measure,
    "memory": memory.measure,
    "rss": memory.measure_roots,
}
PACKAGES = ("gunicorn", "uWSGI", "celery", "numpy", "pandas")


def main(argv: Sequence[str] | None = None) -> None:
    # So that contestants are ended too: they are in sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    Command("benchmarks.supervision", __doc__, MEASURES, PACKAGES).run(argv)


if __name__ == "__main__":
    main()

"""Figures of the ZeroMQ brokers as Markdown: `python -m benchmarks.zmq [name…]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.command import Command
from benchmarks.zmq import roundtrip, throughput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.command import Measure

MEASURES: dict[str, Measure] = {"throughput": throughput.measure, "roundtrip": roundtrip.measure}
PACKAGES = ("taskiq", "pyzmq", "uvloop")


def main(argv: Sequence[str] | None = None) -> None:
    Command("benchmarks.zmq", __doc__, MEASURES, PACKAGES).run(argv)


if __name__ == "__main__":
    main()

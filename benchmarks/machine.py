"""What the numbers depend on, and how they are shown."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"


def describe(*packages: str) -> str:
    """One Markdown paragraph: processor, kernel, Python, versions; of `packages` too."""
    processor = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    versions = ", ".join(
        _version(name) for name in ("taskiq-supervise", "taskiq", "uvloop", *packages)
    )
    return (
        f"{processor}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {versions}.\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    rule = ["---", *("---:" for _ in header[1:])]
    lines = ("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))
    return "\n".join(lines) + "\n"

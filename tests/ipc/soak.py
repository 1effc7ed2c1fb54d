"""The core under load for a long time, while its processes are killed and stopped (`make soak`).

Prints the figures as JSON, and as a row for the table of docs/reliability.md. The exit status is
not 0 if anything was lost, doubled or leaked. SOAK_SECONDS says how long.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe, table
from tests.ipc.conftest import CoreBuild

HEADER = (
    "seconds", "messages", "kills", "stops", "redelivered", "lost", "doubled", "leaked",
    "longest wait", "memory growth",
)  # fmt: skip


def row(found: dict[str, float]) -> list[str]:
    counted = HEADER[1:8]
    return [
        f"{found['seconds']:.0f}",
        *(f"{found[name]:,}" for name in counted),
        f"{found['max_latency_ms']:.0f} ms",
        f"{found['memory_growth_kib']:,} KiB",
    ]


def main() -> int:
    seconds = os.environ.get("SOAK_SECONDS", "600")
    with tempfile.TemporaryDirectory() as folder:
        program = CoreBuild(Path(folder)).program("stress", "-O2")
        done = subprocess.run(
            [program, "--stops", "--seconds", seconds],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.stdout:
        found = json.loads(done.stdout)
        print(json.dumps(found, indent=1), describe(), table(HEADER, [row(found)]), sep="\n\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

"""Digest files: a task that keeps a core busy and is an ordinary function, not a coroutine."""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from taskiq_supervise import SharedMemoryBroker

broker = SharedMemoryBroker("digest-demo")


@dataclass(frozen=True)
class Digest:
    lines: int
    sha256: str
    compressed: int


@broker.task
def digest(path: str) -> Digest:
    content = Path(path).read_bytes()
    return Digest(
        lines=content.count(b"\n"),
        sha256=hashlib.sha256(content).hexdigest(),
        compressed=len(zlib.compress(content, level=9)),
    )

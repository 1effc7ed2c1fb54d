"""gunicorn's settings file: a worker says when it has the application and is about to accept."""

from typing import Any

from benchmarks import ledger


def post_worker_init(_worker: Any) -> None:
    ledger.announce()

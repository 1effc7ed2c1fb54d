"""The application of Celery, over files, since no server is taken for granted.

Its broker of files has a race, a reader may take a message that is still being written, and its
files of results another. So who sends puts messages where nobody reads, and moves them; and what a
task has to say is a line in a file.
"""

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_init

from benchmarks import ledger
from benchmarks.supervision import weight  # noqa: F401 - weight is there to be imported

FOLDER = Path(os.environ["BENCHMARK_CELERY"])
ANSWERS = FOLDER / "answers"
SENT, MESSAGES = FOLDER / "sent", FOLDER / "messages"


def _application() -> Any:
    for folder in (SENT, MESSAGES, FOLDER / "control"):
        folder.mkdir(exist_ok=True)
    app = Celery("supervision", broker="filesystem://")
    app.conf.broker_transport_options = {
        "data_folder_in": str(MESSAGES),
        "data_folder_out": str(SENT),
        "control_folder": str(FOLDER / "control"),
        "polling_interval": 0.01,  # the default, 1 s, would be measured instead of Celery
    }
    app.conf.worker_prefetch_multiplier = 1
    app.conf.broker_connection_retry_on_startup = True
    return app


def _who(seconds: float) -> None:
    time.sleep(seconds)
    descriptor = os.open(ANSWERS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    os.close(descriptor)


def _announce(**_: Any) -> None:
    ledger.announce()


app = _application()
who = app.task(_who, name="who", ignore_result=True)
worker_process_init.connect(_announce)

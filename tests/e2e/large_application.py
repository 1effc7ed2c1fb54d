"""The application of the tests with large data; copied as `large_app.py` into their folder."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from taskiq_supervise import CloudpickleSerializer, SharedMemoryBroker

broker = SharedMemoryBroker("large").with_serializer(CloudpickleSerializer())


@broker.task
async def total(numbers: np.ndarray) -> float:
    return float(numbers.sum())


@broker.task
def apply(function: Any, *args: Any) -> Any:
    return function(*args)


@broker.task
async def total_at_the_second_start(numbers: np.ndarray, marker: str) -> float:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    return float(numbers.sum())

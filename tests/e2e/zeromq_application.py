"""An application on our ZeroMQBroker. As `application.py`, with a ledger, a bell and a gate.

Copied as `app.py` into the folder of each test; `E2E_ADDRESS` says where the pool listens. With a
folder `keys`, everything is under CURVE.
"""

import os
from pathlib import Path
from typing import Any

from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends

from taskiq_supervise import ZeroMQBroker

KEYS: dict[str, Any] = {
    "server_secret_key": "keys/server.key_secret",
    "server_public_key": "keys/server.key",
    "client_secret_key": "keys/client.key_secret",
    "client_keys": "keys/clients",
}

broker = ZeroMQBroker(
    os.environ["E2E_ADDRESS"], **(KEYS if Path("keys").exists() else {})
).with_middlewares(SimpleRetryMiddleware(default_retry_count=3))


def append(path: str, *words: object) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(descriptor)


@broker.task("record")
async def record(name: str) -> str:
    append("ledger", "record", name, os.getpid())
    return name


@broker.task("hold")
def hold(name: str) -> str:
    append("bell", "hold", name, os.getpid())
    with open("gate", "rb", buffering=0) as gate:
        gate.read(1)
    append("ledger", "hold", name, os.getpid())
    return name


@broker.task("flaky", retry_on_error=True)
async def flaky(name: str, context: Context = TaskiqDepends()) -> int:
    append("ledger", "flaky", name, os.getpid())
    retries = int(context.message.labels.get("_retries", 0))
    if retries < 2:
        raise ValueError(f"not yet, after {retries} retries")
    return retries


@broker.task("relay")
async def relay(name: str) -> str:
    """Sends a task and waits for it, from a worker."""
    task = await record.kiq(f"{name}-relayed")
    return (await task.wait_result(timeout=20)).return_value

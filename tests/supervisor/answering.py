"""Instances that only answer: a control socket with commands of the test's own."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from taskiq_supervise.supervisor.control import PATIENCE, Command, ControlServer
from taskiq_supervise.supervisor.runtime import Instance


@asynccontextmanager
async def serving(
    commands: Mapping[str, Command], *, name: str = "one", patience: float = PATIENCE
) -> AsyncIterator[Instance]:
    instance = Instance.claim(name)
    server = ControlServer(commands, patience=patience)
    await server.start(instance.listen())
    try:
        yield instance
    finally:
        await server.close()
        instance.close()

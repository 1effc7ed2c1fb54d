"""A supervisor of one user, a client of another, and a queue that both say they share."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import DEV_SHM
from tests.e2e.conftest import Supervisor
from tests.ipc.conftest import Peer
from tests.ipc.users import ANN, GROUP, IMPORTS, become

# Who is not root has no other users; then both are this one, and share by their own group.
ROOT = os.geteuid() == 0
SHARED_BY = GROUP if ROOT else os.getegid()

APPLICATION = """
import os, signal
from taskiq_supervise import SharedMemoryBroker

broker = SharedMemoryBroker("e2e", directory={directory!r}, mode=0o660, group={group})
asked = {directory!r} + "-asked"

@broker.task("app:twice")
async def twice(text: str) -> str:
    return text * 2

@broker.task("app:deadly")
async def deadly() -> int:
    '''Kills its worker the first time.'''
    if not os.path.exists(asked):
        open(asked, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.geteuid()
"""


@pytest.fixture
def base() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="tsq-", dir=DEV_SHM if DEV_SHM.is_dir() else None))
    place.chmod(0o755)
    yield place / "shared"
    shutil.rmtree(place)


def test_a_client_of_another_user_has_its_tasks_run(
    base: Path, workdir: Path, supervise: Callable[..., Supervisor]
) -> None:
    source = APPLICATION.format(directory=str(base), group=SHARED_BY)
    (workdir / "app.py").write_text(source)
    supervisor = supervise("app:broker", "--workers", "1").wait_ready()
    client = Peer()
    try:
        client.ask(IMPORTS)
        if ROOT:
            become(client, ANN, GROUP)
        client.ask("__name__ = '__main__'\n" + source + "\nawait broker.startup()")
        run = "(await (await {}).wait_result(timeout=20)).return_value"
        assert client.ask(run.format("twice.kiq('ab')")) == "abab"
        assert client.ask("len(" + run.format("twice.kiq('x' * 10**6)") + ")") == 2 * 10**6
        assert client.ask(run.format("deadly.kiq()")) == os.geteuid()
        assert supervisor.pool_status()["queue"]["done"] == 3
        client.kill(signal.SIGKILL)
        assert supervisor.stop() == 0
    finally:
        client.end()

"""One listener at a time: the next one is seen waiting, and follows however the last one ended."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskiq_supervise.worker.listener.baton import Baton

PATIENCE = 20.0
HOLD = """
import sys
from pathlib import Path
from taskiq_supervise.worker.listener.baton import Baton
assert Baton(Path(sys.argv[1])).try_take()
print("held", flush=True)
sys.stdin.read()
"""


async def test_there_is_one(tmp_path: Path) -> None:
    first, second, third = Baton(tmp_path), Baton(tmp_path), Baton(tmp_path)
    assert first.try_take()
    assert not second.try_take()
    first.release()
    assert third.try_take()
    second.release()
    third.release()


async def test_the_next_one_is_seen_from_when_it_is_there_and_follows(tmp_path: Path) -> None:
    first, second, third = Baton(tmp_path), Baton(tmp_path), Baton(tmp_path)
    assert first.try_take()
    assert not first.has_successor()
    assert not second.try_take()
    assert first.has_successor()
    waiting = asyncio.create_task(second.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    first.release()
    await asyncio.wait_for(waiting, PATIENCE)
    assert not second.has_successor()
    assert not third.try_take()
    assert second.has_successor()
    third.release()
    assert not second.has_successor()
    second.release()


async def test_who_waits_no_more_does_not_keep_it(tmp_path: Path) -> None:
    first, second, third = Baton(tmp_path), Baton(tmp_path), Baton(tmp_path)
    assert first.try_take()
    assert not second.try_take()
    waiting = asyncio.create_task(second.take())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    second.release()
    assert not first.has_successor()
    first.release()
    await asyncio.wait_for(third.take(), PATIENCE)
    third.release()


async def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    holder = subprocess.Popen(  # noqa: ASYNC220 - a moment
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        baton = Baton(tmp_path)
        assert not baton.try_take()
        waiting = asyncio.create_task(baton.take())
        await asyncio.sleep(0)
        holder.send_signal(signal.SIGKILL)
        await asyncio.wait_for(waiting, PATIENCE)
        baton.release()

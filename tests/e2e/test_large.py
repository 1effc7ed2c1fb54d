"""Large data and any object through real workers, and what is left of it on the disk."""

import asyncio
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Supervisor

Start = Callable[..., "Supervisor"]
COUNT = 4_000_000


@pytest.fixture
def large_app(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    shutil.copyfile(Path(__file__).with_name("large_application.py"), workdir / "large_app.py")
    monkeypatch.syspath_prepend(str(workdir))
    yield importlib.import_module("large_app")
    del sys.modules["large_app"]


@pytest.fixture
async def large(large_app: ModuleType, supervise: Start) -> Any:
    """The application with its workers, started as a client of its broker."""
    supervise("large_app:broker", "--workers", "2").wait_ready()
    await large_app.broker.startup()
    yield large_app
    await large_app.broker.shutdown()


def bytes_on_disk() -> int:
    """What the queue takes, without its segment."""
    base = Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"])
    files = [path for path in base.rglob("*") if path.is_file() and path.name != "segment"]
    return sum(path.stat().st_blocks * 512 for path in files)


async def test_arrays_and_frames_of_many_megabytes(large: Any) -> None:
    numbers = np.arange(COUNT)
    task = await large.total.kiq(numbers)
    assert (await task.wait_result(timeout=30)).return_value == float(numbers.sum())
    frame = pd.DataFrame({"key": numbers % 7, "value": numbers * 0.5})
    task = await large.apply.kiq(lambda one: one.groupby("key").sum(), frame)
    arrived = (await task.wait_result(timeout=30)).return_value
    pd.testing.assert_frame_equal(arrived, frame.groupby("key").sum())


async def test_files_of_arguments_are_used_again_and_do_not_pile_up(large: Any) -> None:
    async def call(number: int) -> None:
        task = await large.total.kiq(np.full(COUNT, number))
        assert (await task.wait_result(timeout=30)).return_value == COUNT * number

    for number in range(20):
        await asyncio.gather(call(number), call(1000 + number))
    # Some for what runs at once, some to be used again; not 40.
    assert bytes_on_disk() <= 6 * 8 * COUNT


async def test_a_large_argument_survives_the_death_of_its_worker(large: Any, workdir: Path) -> None:
    numbers = np.arange(COUNT)
    task = await large.total_at_the_second_start.kiq(numbers, str(workdir / "second"))
    assert (await task.wait_result(timeout=30)).return_value == float(numbers.sum())


CLIENT = """
import asyncio, dataclasses
from large_app import apply, broker

@dataclasses.dataclass
class Point:
    x: int
    y: int

    def turned(self):
        return Point(-self.y, self.x)

factor = 10

def scaled(point):
    return Point(factor * point.x, factor * point.y)

async def main():
    async with broker:
        for function in (scaled, lambda point: point.turned(), Point.turned):
            result = await (await apply.kiq(function, Point(1, 2))).wait_result(timeout=30)
            print(result.raise_for_error().return_value)

asyncio.run(main())
"""


async def test_functions_and_classes_of_a_script_travel(large: Any, workdir: Path) -> None:
    (workdir / "client.py").write_text(CLIENT)
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "client.py"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["Point(x=10, y=20)", *["Point(x=-2, y=1)"] * 2]


GIGABYTE = 1 << 27
"""Of numbers that take 8 bytes."""


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(GIGABYTE // 4, id="a quarter"),
        pytest.param(GIGABYTE, id="all", marks=pytest.mark.stress),
    ],
)
async def test_a_gigabyte_travels(large: Any, count: int) -> None:
    numbers = np.ones(count)
    numbers[-1] = 5
    task = await large.total.kiq(numbers)
    assert (await task.wait_result(timeout=60)).return_value == float(count) + 4

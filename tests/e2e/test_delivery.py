"""What runs, runs once; where it runs; and what comes back."""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor


async def test_ten_thousand_tasks_run_exactly_once_and_every_worker_takes_part(
    supervise: Callable[..., "Supervisor"], client: Any, ledger: "Ledger"
) -> None:
    supervisor = supervise("app:broker", "--workers", "4").wait_ready()
    workers = set(supervisor.worker_pids())
    numbers = range(10_000)

    async def run(number: int) -> int:
        task = await client.record.kiq(number)
        result = await task.wait_result(timeout=60)
        result.raise_for_error()
        returned: int = result.return_value
        return returned

    assert await asyncio.gather(*map(run, numbers)) == list(numbers)
    done = [worker["tasks"]["done"] for worker in supervisor.status()["workers"]]
    assert supervisor.stop() == 0
    assert ledger.counts("record") == {str(number): 1 for number in numbers}
    assert ledger.pids("record") == workers
    assert sum(done) == len(numbers)


@pytest.mark.parametrize("limit", [(), ("--max-async-tasks", "1")], ids=["default", "one-each"])
async def test_tasks_spread_over_the_workers_before_a_worker_takes_a_second(
    supervise: Callable[..., "Supervisor"],
    client: Any,
    bell: "Bell",
    gate: "Gate",
    limit: tuple[str, ...],
) -> None:
    supervisor = supervise("app:broker", "--workers", "4", *limit).wait_ready()
    everywhere = 0
    for round_ in range(5):  # those that have worked before are as free as those that have not
        tasks = [await client.hold.kiq(f"{round_}-{number}") for number in range(4)]
        # None ends before all have begun: were one to wait for another's end, this would not end.
        pids = {bell.wait()[1] for _ in tasks}
        everywhere += pids == set(supervisor.worker_pids())
        gate.let_by(4)
        for task in tasks:
            (await task.wait_result(timeout=30)).raise_for_error()
    # A worker that may run several waits 50 ms for one that runs nothing. On a machine that stood
    # still for longer than that, one round may go otherwise.
    assert everywhere == 5 if limit else everywhere >= 4


async def test_a_megabyte_of_bytes_goes_there_and_back(
    supervise: Callable[..., "Supervisor"], client: Any
) -> None:
    supervise("app:broker")
    content = os.urandom(1 << 20)
    task = await client.reverse.kiq(content)
    assert (await task.wait_result(timeout=30)).return_value == content[::-1]


async def test_tasks_sent_before_there_is_a_worker_are_run_by_the_first(
    supervise: Callable[..., "Supervisor"], client: Any
) -> None:
    tasks = [await client.record.kiq(number) for number in range(20)]
    supervise("app:broker")
    results = [await task.wait_result(timeout=30) for task in tasks]
    assert [result.return_value for result in results] == list(range(20))


async def test_another_process_gets_the_result_by_its_id(
    supervise: Callable[..., "Supervisor"], client: Any
) -> None:
    supervise("app:broker")
    task = await client.own_id.kiq()
    await task.wait_result(timeout=30)
    code = (
        "import asyncio, sys, app\n"
        "async def main():\n"
        "    async with app.broker:\n"
        "        result = await app.broker.result_backend.get_result(sys.argv[1])\n"
        "        print(result.return_value)\n"
        "asyncio.run(main())\n"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, task.task_id, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await other.communicate()
    assert output.decode().strip() == task.task_id


async def test_an_exception_in_a_task_is_the_clients_error(
    supervise: Callable[..., "Supervisor"], client: Any
) -> None:
    supervise("app:broker")
    task = await client.divide.kiq(1, 0)
    result = await task.wait_result(timeout=30)
    assert result.is_err
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        result.raise_for_error()

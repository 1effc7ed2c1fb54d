"""Sends one task and waits for its result: `python client.py`, while the workers run."""

import asyncio

from app import add, broker


async def main() -> None:
    async with broker:
        task = await add.kiq(1, 2)
        result = await task.wait_result(timeout=5)
        print(result.return_value)


asyncio.run(main())

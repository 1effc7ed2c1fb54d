"""A program that has work done by the other container, once a second."""

import asyncio
import itertools

from app import add, broker


async def main() -> None:
    async with broker:
        for number in itertools.count():
            task = await add.kiq(number, number)
            result = await task.wait_result()
            print(f"{number} + {number} = {result.return_value}")
            await asyncio.sleep(1)


asyncio.run(main())

"""All measurements, one after another, as the Markdown of docs/benchmarks.md."""

import asyncio

from benchmarks import idle, machine, recovery, roundtrip, spread, throughput


async def main() -> None:
    print(machine.describe())
    for measurement in (roundtrip, throughput, spread, recovery, idle):
        print(await measurement.report(), flush=True)


asyncio.run(main())

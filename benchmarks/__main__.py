"""All measurements, one after another, as the Markdown of docs/benchmarks.md."""

import asyncio

from benchmarks import idle, machine, recovery, roundtrip, spread, throughput
from benchmarks.ipc import __main__ as ipc
from benchmarks.supervision import __main__ as supervision
from benchmarks.zmq import __main__ as zmq


async def main() -> None:
    print(machine.describe())
    for measurement in (roundtrip, throughput, spread, recovery, idle):
        print(await measurement.report(), flush=True)


asyncio.run(main())
ipc.main([])  # its processes are forked, which no event loop may be running for
supervision.main([])
zmq.main([])

"""The environment by which a round tells its processes which broker is meant."""

KIND = "BENCHMARK_BROKER"
"""`stock`, `own` or `shm`."""
ADDRESS = "BENCHMARK_ADDRESS"
"""Of a socket: `tcp://127.0.0.1:PORT` or `ipc://PATH`."""

"""The supervisor side by side with its peers: `python -m benchmarks.supervision [name…]`."""

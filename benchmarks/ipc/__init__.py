"""The queue side by side with its peers: `python -m benchmarks.ipc`, or one figure by its name."""

"""Measurements to repeat: `make bench` for all, `python -m benchmarks.roundtrip` for one."""

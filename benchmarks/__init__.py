"""Measurements of sde beside its peers, in one process: `python -m benchmarks`, or `make bench`."""

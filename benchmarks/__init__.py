"""Benchmarks: `python -m benchmarks`, or `make bench`. See README.md for method, machine and bias."""

"""Speeds, as ratios within one run: what is compared stands in each file. `python -m benchmarks --help`."""

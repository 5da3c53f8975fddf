"""Benchmarks: each a command that prints JSON lines; `python -m experiments.bench` runs all."""

"""The demo, the experiments and the benchmarks, each a command."""

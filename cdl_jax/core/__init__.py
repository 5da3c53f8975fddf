"""Pure functions: sparsification, the train step, updates. No files, no clocks, no Flax."""

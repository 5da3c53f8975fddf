"""One file per figure or table of the report, each over the results of `experiments.grid`."""

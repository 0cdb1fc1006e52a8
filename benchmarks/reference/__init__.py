"""The published method in eager PyTorch, in its own order of work: the baseline of the benchmarks."""

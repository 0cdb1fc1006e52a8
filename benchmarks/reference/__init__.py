"""The published method in eager PyTorch, in its own order of work: what the benchmarks compare with."""

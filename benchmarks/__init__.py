"""Benchmarks, run as scripts from an editable installation: `python benchmarks/speed/latency.py --help`."""

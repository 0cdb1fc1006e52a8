"""What is measured, by scripts: `python benchmarks/NAME.py --help`."""

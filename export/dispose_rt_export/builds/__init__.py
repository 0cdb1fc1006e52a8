"""Builds of engine directories: plans, the steps of a network, records of finished ones, progress."""

"""Errors of every network by precision."""

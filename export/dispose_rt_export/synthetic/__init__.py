"""Checkpoints without a download: seeded weights in the published layout."""

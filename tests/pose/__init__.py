"""Tests of the pose stages."""

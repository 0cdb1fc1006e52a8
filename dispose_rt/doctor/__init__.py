"""Examination of this machine and of engine directories, for `dispose-rt doctor`."""

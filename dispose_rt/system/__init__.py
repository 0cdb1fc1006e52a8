"""Files and memory of the host."""

"""One run, from media to frames."""

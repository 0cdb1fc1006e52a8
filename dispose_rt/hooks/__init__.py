"""What a caller plugs into a run: progress and observers."""

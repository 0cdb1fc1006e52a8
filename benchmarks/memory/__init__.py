"""Memory of long clips."""

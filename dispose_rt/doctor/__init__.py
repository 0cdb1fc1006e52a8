"""What this machine and an engine directory can do, and what to type next (`dispose-rt doctor`)."""

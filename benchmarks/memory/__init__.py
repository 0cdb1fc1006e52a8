"""How much memory."""

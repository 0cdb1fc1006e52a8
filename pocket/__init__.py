"""Trains the small checkpoint that really animates: drawn puppets in, a checkpoint in the published layout out."""

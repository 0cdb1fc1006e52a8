"""From a PyTorch module to a verified engine."""

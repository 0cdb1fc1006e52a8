"""How fast: kernels, networks, a denoising step, whole animations."""

"""Times of kernels, networks, denoising steps and whole animations."""

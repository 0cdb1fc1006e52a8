"""The sampling loop: noise to latents."""

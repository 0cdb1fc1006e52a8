"""Encoder of the variational autoencoder of Stable Video Diffusion: an image to the mode of its latent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from ..checkpoints import Weights, load_strict


class PosteriorEncoder(nn.Module):
    """Encoder of a diffusers autoencoder, up to the moments of its Gaussian posterior.

    Args:
        autoencoder: any diffusers autoencoder with `encoder` and `quant_conv`, which are shared, not copied.
    """

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.encoder = autoencoder.get_submodule("encoder")
        self.quant_conv = autoencoder.get_submodule("quant_conv")

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype  # type: ignore[return-value]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance, float32, each [1, 4, height/8, width/8]."""
        mean, log_variance = self.quant_conv(self.encoder(image.to(self.dtype))).float().chunk(2, dim=1)
        return mean, log_variance


def load_posterior_encoder(autoencoder: nn.Module, tensors: Mapping[str, Tensor], source: str) -> PosteriorEncoder:
    """Take the encoder of an autoencoder and load its weights; tensors of the decoder are ignored.

    Raises:
        CheckpointError: the tensors are not exactly those of the autoencoder.
    """
    encoder = PosteriorEncoder(autoencoder)
    load_strict(encoder, tensors, source, unused=autoencoder.state_dict().keys() - encoder.state_dict().keys())
    return encoder


class VaeEncoder(nn.Module):
    """Encodes the reference image, without the scaling factor: the UNet was trained on unscaled image latents."""

    def __init__(self, posterior: PosteriorEncoder) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, image: Tensor) -> Tensor:
        """Encode an image.

        Args:
            image: float32 [1, 3, height, width], -1..1.

        Returns:
            Mode of the posterior, float32 [1, 4, height/8, width/8].
        """
        mean: Tensor = self.posterior(image)[0]
        return mean


def build_vae_encoder(weights: Weights) -> VaeEncoder:
    """Build the network in float32 evaluation mode from `stable-video-diffusion-img2vid-xt-1-1/vae`.

    Raises:
        CheckpointError: the published file does not hold exactly the tensors of the autoencoder.
    """
    with torch.device("meta"):
        autoencoder = AutoencoderKLTemporalDecoder.from_config(dict(weights.configs["svd_vae"]))
    return VaeEncoder(load_posterior_encoder(autoencoder, weights.tensors("svd_vae"), weights.source("svd_vae"))).eval()

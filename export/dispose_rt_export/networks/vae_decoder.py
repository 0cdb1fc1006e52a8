"""Temporal decoder of the variational autoencoder of Stable Video Diffusion: latents to frames."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from ..checkpoints import Weights, load_strict


class VaeDecoder(nn.Module):
    """Decodes one chunk of frames; it mixes frames over time, so the length of the chunk changes its pixels.

    Args:
        decoder: diffusers' temporal decoder, float32.
        scaling_factor: factor of the sampler's latents.
    """

    def __init__(self, decoder: nn.Module, scaling_factor: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.scaling_factor = scaling_factor

    def forward(self, latents: Tensor) -> Tensor:
        """Decode a chunk.

        Args:
            latents: float32 [chunk, 4, height/8, width/8], as the sampler has them.

        Returns:
            Frames, float32 [chunk, 3, height, width], about -1..1, not clamped.
        """
        dtype = next(self.decoder.parameters()).dtype
        latents = (latents / self.scaling_factor).to(dtype)
        frames = latents.shape[0]
        # the decoder reads nothing of the indicator but its shape: no frame of a clip is a still image
        indicator = latents.new_zeros(1, frames)
        decoded: Tensor = self.decoder(latents, image_only_indicator=indicator, num_frames=frames)
        return decoded.float()


def build_vae_decoder(weights: Weights) -> VaeDecoder:
    """Build the network in float32 evaluation mode from `stable-video-diffusion-img2vid-xt-1-1/vae`.

    Raises:
        CheckpointError: the published file does not hold exactly the tensors of the autoencoder.
    """
    with torch.device("meta"):
        autoencoder = AutoencoderKLTemporalDecoder.from_config(dict(weights.configs["svd_vae"]))
    decoder = VaeDecoder(autoencoder.decoder, autoencoder.config.scaling_factor)
    unused = autoencoder.state_dict().keys() - decoder.state_dict().keys()
    load_strict(decoder, weights.tensors("svd_vae"), weights.source("svd_vae"), unused)
    return decoder.eval()

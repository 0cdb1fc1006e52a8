"""Diffusion features (DIFT): an image to a semantic feature map, read out of the UNet of Stable Diffusion 1.5.

Source: "Emergent Correspondence from Image Diffusion" (NeurIPS 2023), as DisPose uses it: features behind the second
upsampling block at time step 261, averaged over an ensemble, for the prompt "photo of a human".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ..checkpoints import Tensors, Weights, load_strict
from .vae_encoder import PosteriorEncoder, load_posterior_encoder

PROMPT = "photo of a human"
TIMESTEP = 261
UP_BLOCKS = 2
"""Upsampling blocks that run; the features are the output of the last of them, its upsampler included."""

_LOG_VARIANCE_LIMITS = (-30.0, 20.0)
_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers in autoencoder files from before diffusers 0.15, and what they are called now."""


class UnetFeatures(nn.Module):
    """The part of a UNet that the features depend on, for one time step and one prompt.

    Args:
        unet: diffusers UNet; its layers are taken over, not copied.
        time_embedding: [1, channels], of the time step.
        prompt_embeds: [1, tokens, channels].
    """

    def __init__(self, unet: nn.Module, time_embedding: Tensor, prompt_embeds: Tensor) -> None:
        super().__init__()
        self.conv_in = unet.get_submodule("conv_in")
        self.down_blocks = unet.get_submodule("down_blocks")
        self.mid_block = unet.get_submodule("mid_block")
        self.up_blocks = unet.get_submodule("up_blocks")
        self.register_buffer("time_embedding", time_embedding)
        self.register_buffer("prompt_embeds", prompt_embeds)

    def forward(self, latents: Tensor) -> Tensor:
        """Features [batch, channels, height/2, width/2] of noisy latents [batch, 4, height, width]."""
        time = self.get_buffer("time_embedding")
        prompt = self.get_buffer("prompt_embeds").expand(latents.shape[0], -1, -1)
        x = self.conv_in(latents.to(prompt.dtype))
        skips = [x]
        for block in self.down_blocks.children():
            x, outputs = _run(block, x, time, prompt)
            skips.extend(outputs)
        x = self.mid_block(x, time, encoder_hidden_states=prompt)
        for block in self.up_blocks.children():
            count = len(block.resnets)  # type: ignore[arg-type]
            x = _run(block, x, time, prompt, res_hidden_states_tuple=tuple(skips[-count:]))
            del skips[-count:]
        features: Tensor = x
        return features

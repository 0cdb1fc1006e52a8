"""Diffusion features (DIFT): an image to a semantic feature map, read out of the UNet of Stable Diffusion 1.5.

Source: "Emergent Correspondence from Image Diffusion" (NeurIPS 2023), as DisPose uses it: features behind the second
upsampling block at time step 261, averaged over an ensemble, for the prompt "photo of a human".
"""

from __future__ import annotations

import re

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
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers in older autoencoder files, and their current names."""


class Constant(nn.Module):
    """Stands in for a layer whose output never changes."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *_: object) -> Tensor:
        return self.value


class Dift(nn.Module):
    """Features of an ensemble of noisy copies of one image, averaged.

    Args:
        posterior: encoder of the autoencoder.
        unet: diffusers UNet that ends behind upsampling block UP_BLOCKS.
        prompt_embeds: float32 [1, 77, channels].
        scaling_factor: factor of the latents before noise is added.
        alpha_cumprod: share of the signal's variance that is left at TIMESTEP, 0..1.
    """

    prompt_embeds: Tensor

    def __init__(
        self,
        posterior: PosteriorEncoder,
        unet: nn.Module,
        prompt_embeds: Tensor,
        scaling_factor: float,
        alpha_cumprod: float,
    ) -> None:
        super().__init__()
        self.posterior = posterior
        self.unet = unet
        self.register_buffer("prompt_embeds", prompt_embeds)
        self.scaling_factor = scaling_factor
        self.signal = alpha_cumprod**0.5
        self.sigma = (1 - alpha_cumprod) ** 0.5

    def forward(self, image: Tensor, posterior_noise: Tensor, noise: Tensor) -> Tensor:
        """Extract features.

        Args:
            image: float32 [1, 3, height, width], -1..1.
            posterior_noise: float32 [8, 4, height/8, width/8], unit normal; draws the members' latents.
            noise: float32 [8, 4, height/8, width/8], unit normal; what diffusion adds.

        Returns:
            Features, float32 [1, dift, height/16, width/16].
        """
        latents = self.noisy_latents(image, posterior_noise, noise)
        prompt = self.prompt_embeds.expand(latents.shape[0], -1, -1)
        members: Tensor = self.unet(latents.to(prompt.dtype), TIMESTEP, prompt).sample
        features: Tensor = members.float().mean(dim=0, keepdim=True)
        return features

    def noisy_latents(self, image: Tensor, posterior_noise: Tensor, noise: Tensor) -> Tensor:
        """Draw from the posterior and add diffusion noise: float32 [8, 4, height/8, width/8]."""
        mean, log_variance = self.posterior(image)
        deviation = (0.5 * log_variance.clamp(*_LOG_VARIANCE_LIMITS)).exp()
        latents = (mean + deviation * posterior_noise) * self.scaling_factor
        noisy: Tensor = self.signal * latents + self.sigma * noise
        return noisy


def build_dift(weights: Weights) -> Dift:
    """Build the network in float32 evaluation mode from `stable-diffusion-v1-5`, the prompt's embedding baked in.

    Raises:
        CheckpointError: a published file does not hold exactly the tensors of its model.
    """
    with torch.device("meta"):
        autoencoder = AutoencoderKL.from_config(dict(weights.configs["sd15_vae"]))
    posterior = load_posterior_encoder(
        autoencoder, rename_old_attention(weights.tensors("sd15_vae")), weights.source("sd15_vae")
    )
    # the reference reads the published PNDM settings as DDIM; both add noise by the same formula
    scheduler = DDIMScheduler.from_config(dict(weights.configs["sd15_scheduler"]))
    return Dift(
        posterior,
        _build_unet(weights),
        embed_prompt(weights, PROMPT),
        autoencoder.config.scaling_factor,
        float(scheduler.alphas_cumprod[TIMESTEP]),
    ).eval()


def rename_old_attention(tensors: Tensors) -> Tensors:
    """Give attention layers of an autoencoder their current names; other names, and current ones, stay."""
    pattern = re.compile(rf"(?<=\.attentions\.0\.)({'|'.join(_OLD_ATTENTION_NAMES)})(?=\.(?:weight|bias)$)")
    return {pattern.sub(lambda old: _OLD_ATTENTION_NAMES[old[0]], name): tensor for name, tensor in tensors.items()}


def embed_prompt(weights: Weights, prompt: str) -> Tensor:
    """Embed a prompt with the text encoder of Stable Diffusion 1.5.

    Returns:
        Hidden states behind the final norm, float32 [1, 77, channels].

    Raises:
        CheckpointError: the published file does not hold exactly the tensors of the text encoder.
    """
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(dict(weights.configs["sd15_text_encoder"]))).eval()
    tensors = {
        name.removeprefix("text_model."): tensor for name, tensor in weights.tensors("sd15_text_encoder").items()
    }
    load_strict(encoder, tensors, weights.source("sd15_text_encoder"), unused={"embeddings.position_ids"})
    token_ids = weights.tokenize(prompt)
    # never read from a file by this version of transformers: older files hold 0, 1, 2, ... and newer ones nothing
    ids = torch.arange(encoder.config.max_position_embeddings, device=token_ids.device)
    encoder.embeddings.position_ids = ids.unsqueeze(0)
    with torch.no_grad():
        embeds: Tensor = encoder(token_ids).last_hidden_state
    return embeds


def _build_unet(weights: Weights) -> nn.Module:
    """The UNet, cut off behind the features and with the embedding of TIMESTEP baked in."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(weights.configs["sd15_unet"]))
    published = unet.state_dict().keys()
    unet.up_blocks = unet.up_blocks[:UP_BLOCKS]
    unet.conv_norm_out = None
    unet.conv_out = nn.Identity()
    load_strict(
        unet, weights.tensors("sd15_unet"), weights.source("sd15_unet"), unused=published - unet.state_dict().keys()
    )
    with torch.no_grad():
        timestep = torch.tensor([TIMESTEP], device=unet.device)
        unet.time_embedding = Constant(unet.time_embedding(unet.time_proj(timestep)))
    network: nn.Module = unet
    return network

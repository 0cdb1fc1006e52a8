"""The network that correspondences are read from: a denoiser of single pictures, in the place of Stable Diffusion 1.5.

It shares the encoder of the trained autoencoder, as Stable Diffusion and Stable Video Diffusion do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from .autoencoder import LATENT_NOISE, SCALING_FACTOR
from .data import PuppetSet
from .denoiser import normals_like
from .latents import LatentSet
from .loop import Schedule, Stage
from .pictures import save_rows, to_levels
from .sampler import rows_like

_SPATIAL = ".spatial_res_block."
_TEMPORAL = ("temporal_res_block", "time_mixer", "time_conv_out")


class DiftStage(Stage):
    """Noise prediction on single frames for one prompt (Ho et al. 2020, arXiv:2006.11239).

    Args:
        config: the parsed `unet/config.json` of Stable Diffusion 1.5.
        scheduler: its parsed `scheduler/scheduler_config.json`.
        prompt: float32 [1, 77, channels], the embedding of the only prompt.
        puppets: training set.
        latents: of the training set.
        steps: length of the stage.
        batch: frames per step.
        device: where it runs.
    """

    name = "dift"

    def __init__(
        self,
        config: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        prompt: Tensor,
        puppets: PuppetSet,
        latents: LatentSet,
        *,
        steps: int,
        batch: int,
        device: torch.device,
    ) -> None:
        self.schedule = Schedule(steps, peak=1e-3, warmup=100)
        self._unet: nn.Module = UNet2DConditionModel.from_config(dict(config)).to(device)
        with torch.no_grad():
            nn.init.zeros_(self._unet.get_submodule("conv_out").weight)
        self.modules = nn.ModuleDict({"unet": self._unet})
        self._signal = DDIMScheduler.from_config(dict(scheduler)).alphas_cumprod.to(device)
        self._prompt = prompt.to(device)
        self._puppets = puppets
        self._latents = latents
        self._batch = batch
        self._device = device

    def loss(self, step: int, random: np.random.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        puppets = random.integers(self._puppets.puppets, size=self._batch).tolist()
        frames = [
            0 if puppet % 2 else (puppet + 3 * int(random.integers(6))) % self._puppets.rows for puppet in puppets
        ]
        clean = self._latents.gather(puppets, frames).to(self._device) * SCALING_FACTOR
        clean = clean + LATENT_NOISE * normals_like(random, clean)  # a draw from the posterior
        times = torch.from_numpy(random.integers(len(self._signal), size=self._batch)).to(self._device)
        noise = normals_like(random, clean)
        error = (self._predict(clean, noise, times) - noise).square().mean((1, 2, 3))
        early = times < len(self._signal) // 3
        return error.mean(), {"early": error[early].mean().detach()} if early.any() else {}

    def _predict(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        signal = rows_like(self._signal[times])
        with torch.autocast(self._device.type, torch.bfloat16):
            noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
            predicted: Tensor = self._unet(noisy, times, self._prompt.expand(len(clean), -1, -1)).sample
        return predicted.float()

    def validate(self, picture: Path) -> Mapping[str, float]:
        """Error of the clean latents that are predicted at the time step of the features."""
        clean = self._latents.gather(list(range(8)), [0] * 8).to(self._device) * SCALING_FACTOR
        random = np.random.default_rng(0)
        noise, times = normals_like(random, clean), torch.full((8,), 261, device=self._device)
        signal = rows_like(self._signal[times])
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        restored = (noisy - (1 - signal).sqrt() * self._predict(clean, noise, times)) / signal.sqrt()
        rows = [to_levels(latents[:, :3] / 3) for latents in (clean, noisy, restored)]
        save_rows(picture, rows, scale=4)
        return {"restored": float((restored - clean).square().mean()), "noisy": float((noisy - clean).square().mean())}


def still_autoencoder(autoencoder: nn.Module, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of the image autoencoder of Stable Diffusion 1.5 that a trained temporal one contains.

    Args:
        autoencoder: diffusers' temporal autoencoder.
        config: the parsed `vae/config.json` of Stable Diffusion 1.5, with the same widths.

    Returns:
        Tensors by diffusers' current names. The decoder is the temporal one's, frame by frame.
    """
    still: nn.Module = AutoencoderKL.from_config(dict(config))
    with torch.no_grad():
        bridge = still.get_submodule("post_quant_conv")
        bridge.weight.copy_(torch.eye(bridge.weight.shape[0])[:, :, None, None])
        bridge.bias.zero_()
    taken = {
        name.replace(_SPATIAL, "."): tensor
        for name, tensor in autoencoder.state_dict().items()
        if not any(part in name for part in _TEMPORAL)
    }
    tensors: dict[str, Tensor] = {**still.state_dict(), **taken}
    still.load_state_dict(tensors)  # says so if a name is not of this network
    return tensors

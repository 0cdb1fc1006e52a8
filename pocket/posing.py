"""A head start for PoseNet: before any denoiser listens, it learns where the body is.

A drawn pose is a few dotted lines a pixel wide; learning to read them through a denoiser's loss is slow. So PoseNet is
first taught, through a linear head that is dropped afterwards, to tell what the default puppet would look like in
that pose. Only then does it enter the denoiser, where it goes on learning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .data import GUIDE_STRIDE_PX, PuppetSet, draw_guide
from .loop import Schedule, Stage
from .pictures import from_levels, from_planes, save_rows, to_levels
from .project import PoseNet
from .puppets import draw_clip, held_out_seed

_CELL_PX = 8
_CELL = _CELL_PX // GUIDE_STRIDE_PX
_HELD_OUT_PUPPETS = 4
_COLOR_WEIGHT, _BODY_WEIGHT = 4.0, 3.0


class PosingStage(Stage):
    """PoseNet under a linear head that draws the default puppet at a quarter of the size.

    Args:
        channels: of the pose latents.
        puppets: training set.
        steps: length of the stage.
        batch: frames per step.
        device: where it runs.
    """

    name = "posing"
    averaging = 0.998

    def __init__(self, channels: int, puppets: PuppetSet, steps: int, batch: int, device: torch.device) -> None:
        self.schedule = Schedule(steps, peak=2e-3, warmup=100)
        self._pose_net = PoseNet(channels).to(device)
        with torch.no_grad():
            self._pose_net.scale.fill_(1.0)
        self._head = nn.Conv2d(channels, 3 * _CELL**2, kernel_size=1).to(device)
        self.modules = nn.ModuleDict({"pose_net": self._pose_net, "head": self._head})
        self._puppets = puppets
        self._batch = batch
        self._device = device

    def loss(self, step: int, random: np.random.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        puppets = random.integers(self._puppets.puppets, size=self._batch).tolist()
        frames = random.integers(17, size=self._batch).tolist()
        poses = from_planes(self._puppets.gather("poses", puppets, frames)).to(self._device)
        guides = from_levels(self._puppets.gather("guides", puppets, frames)).to(self._device)
        drawn, latents = self._draw(poses)
        error = drawn - guides
        color = (guides.amax(1, keepdim=True) - guides.amin(1, keepdim=True)) / 2
        body = ((guides - guides[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1).float()
        weight = 1 + _COLOR_WEIGHT * color + _BODY_WEIGHT * body
        loss = (weight * error.square()).mean() + 0.3 * (weight * error.abs()).mean()
        spread = (latents.std() - 1).square() + latents.mean().square()
        return loss + 0.05 * spread, {"mse": error.square().mean(), "spread": spread}

    def _draw(self, poses: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16):
            latents = self._pose_net(poses)
        latents = latents.float()
        return functional.pixel_shuffle(self._head(latents), _CELL), latents

    def validate(self, picture: Path) -> Mapping[str, float]:
        clips = [draw_clip(held_out_seed(number), frames=3) for number in range(_HELD_OUT_PUPPETS)]
        guides = np.stack([draw_guide(joints) for clip in clips for joints in clip.joints])
        poses = np.concatenate([clip.poses for clip in clips])
        drawn = to_levels(self._draw(from_planes(poses).to(self._device))[0])
        pictures = poses.transpose(0, 2, 3, 1)[:, ::GUIDE_STRIDE_PX, ::GUIDE_STRIDE_PX]
        save_rows(picture, [pictures, guides, drawn], scale=2)
        return {"mse": float(((guides.astype(float) - drawn) ** 2).mean() / 127.5**2)}

"""DisPose's part: hybrid ControlNet, motion encoder and point encoder, trained with everything else frozen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .autoencoder import SCALING_FACTOR
from .data import PuppetSet
from .denoiser import DROPPED, Denoiser, Judge, draw_sigmas, draw_slots, normals_like
from .latents import LatentSet
from .loop import Schedule, Stage
from .motion_fields import DenseFlows, trajectory_flow
from .pictures import from_levels, from_planes
from .points import embed_joints, group_joints, spread_points
from .project import RESIDUAL_MULTIPLICITY, ControlNet, DenoiserConfig, Dift, MotionEncoder, PointEncoder
from .rows import close_temporal_layers, embed_times, interleaved_parameters, walk_controlnet
from .sampler import rows_like, velocity_target

F32 = NDArray[np.float32]

_ENCODER_PARTS = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")


class Guidance(nn.Module):
    """The networks of `DisPose.pth`.

    Args:
        config: the parsed `unet/config.json` of Stable Video Diffusion.
        embedding: channels of the DIFT features.
    """

    def __init__(self, config: Mapping[str, Any], embedding: int) -> None:
        super().__init__()
        widths = DenoiserConfig.from_mapping(config)
        self.controlnet = ControlNet(widths)
        self.motion_encoder = MotionEncoder(widths.channels[0])
        self.point_encoder = PointEncoder(embedding, widths.channels)
        close_temporal_layers(self.controlnet)
        for parameter in interleaved_parameters(self.controlnet):
            parameter.requires_grad_(False)

    def published(self) -> dict[str, Tensor]:
        """Tensors by their names in `DisPose.pth`."""
        parts = {
            "": self.controlnet,
            "controlnet_cond_embedding.": self.motion_encoder,
            "point_adapter.": self.point_encoder,
        }
        return {
            f"{prefix}{name}": tensor
            for prefix, module in parts.items()
            for name, tensor in module.state_dict().items()
        }

    @torch.no_grad()
    def start_from(self, unet: nn.Module) -> None:
        """Take the UNet's encoder over, and begin without any effect, as ControlNets do (arXiv:2302.05543)."""
        own = self.controlnet.state_dict()
        taken = {name: tensor for name, tensor in unet.state_dict().items() if name.startswith(_ENCODER_PARTS)}
        self.controlnet.load_state_dict({**own, **taken})
        close_guidance(self)

    def residuals(
        self,
        sample: Tensor,
        times: Tensor,
        context: Tensor,
        motion_features: Tensor,
        point_features: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """What the UNet adds to its skip connections, as often as the reference adds it; see `walk_controlnet`."""
        emitted = walk_controlnet(self.controlnet, sample, times, context, motion_features, point_features)
        return tuple(one * count for one, count in zip(emitted, RESIDUAL_MULTIPLICITY, strict=True))


@torch.no_grad()
def close_guidance(guidance: Guidance) -> None:
    """Let the ControlNet add nothing."""
    for emitter in (*guidance.controlnet.controlnet_down_blocks, guidance.controlnet.controlnet_mid_block):
        nn.init.zeros_(emitter.weight)
        nn.init.zeros_(emitter.bias)


class GuidanceStage(Stage):
    """Clips with their motion fields and points; both are left out of some, independently.

    Args:
        guidance: what is trained.
        denoiser: frozen.
        dift: frozen.
        puppets: training set.
        latents: of the training set.
        references: image embeddings of the references, [puppets, embed].
        flows: dense flows of the training set.
        judge: measures on held-out puppets, without guidance: what the frozen denoiser does.
        clips: how many puppets are used, since CMP takes seconds per clip.
        steps: length of the stage.
        batch: clips per step.
        frames: per clip, the reference in slot 0 included.
        device: where it runs.
    """

    name = "guidance"

    def __init__(
        self,
        guidance: Guidance,
        denoiser: Denoiser,
        dift: Dift,
        puppets: PuppetSet,
        latents: LatentSet,
        references: Tensor,
        flows: DenseFlows,
        judge: Judge,
        *,
        clips: int,
        steps: int,
        batch: int,
        frames: int,
        device: torch.device,
    ) -> None:
        self.schedule = Schedule(steps, peak=5e-4, warmup=100)
        self.modules = nn.ModuleDict({"guidance": guidance})
        self._guidance = guidance
        self._denoiser = denoiser.eval().requires_grad_(False)
        self._dift = dift
        self._puppets = puppets
        self._latents = latents
        self._references = references
        self._flows = flows
        self._judge = judge
        self._clips = clips
        self._batch = batch
        self._frames = frames
        self._device = device
        self._embeddings: dict[int, F32] = {}

    def loss(self, step: int, random: np.random.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        puppets = random.integers(self._clips, size=self._batch).tolist()
        slots = [draw_slots(random, self._frames, self._puppets.rows) for _ in puppets]
        owners, flat = np.repeat(puppets, self._frames).tolist(), np.concatenate(slots).tolist()
        kept = torch.from_numpy((random.random(self._batch) >= DROPPED).astype(np.float32)).to(self._device)
        row_kept = rows_like(kept.repeat_interleave(self._frames))
        clean = self._latents.gather(owners, flat).to(self._device) * SCALING_FACTOR
        images = self._latents.gather(owners, [0] * len(owners)).to(self._device) * row_kept
        embeds = self._references[puppets].to(self._device) * kept[:, None]
        poses = from_planes(self._puppets.gather("poses", owners, flat)).to(self._device)
        sigmas = draw_sigmas(random, self._batch).to(self._device).repeat_interleave(self._frames)
        noise = normals_like(random, clean)
        noisy = clean + rows_like(sigmas) * noise
        with torch.autocast(self._device.type, torch.bfloat16):
            motion = self._encode_motion(puppets, slots, random)
            points = self._encode_points(puppets, slots, random)
            sample = torch.cat([noisy / rows_like(sigmas.square() + 1).sqrt(), images], dim=1)
            times = embed_times(self._guidance.controlnet, sigmas, self._denoiser.added_time_ids)
            residuals = self._guidance.residuals(sample, times, embeds, motion, points)
            pose_latents = self._denoiser.pose_net(poses) * row_kept
            predicted = self._denoiser.predict(noisy, sigmas, images, embeds, pose_latents, residuals)
        error = (predicted - velocity_target(clean, noise, rows_like(sigmas))).square().mean((1, 2, 3))
        parts = {"high": error[sigmas > 3], "low": error[sigmas <= 3]}
        return error.mean(), {name: values.mean().detach() for name, values in parts.items() if len(values)}

    def _encode_motion(self, puppets: list[int], slots: list[NDArray[np.int64]], random: np.random.Generator) -> Tensor:
        """Motion features, zero in clips whose motion is dropped."""
        dense, trajectories, kept = [], [], []
        for puppet, frames in zip(puppets, slots, strict=True):
            shard, row = self._puppets.shard(puppet)
            joints = np.asarray(shard.joints[row])
            stride = int(frames[2] - frames[1]) if len(frames) > 2 else 1
            # the first tile of a run begins at the reference, others at the frame before their first
            before = 0 if random.random() < 0.5 or frames[1] <= stride else int(frames[1]) - stride
            earlier = [before, *frames[1:-1].tolist()]
            dense.append(self._flows.clip(puppet)[frames])
            still = np.zeros((1, *dense[-1].shape[1:]), np.float32)
            moved = [trajectory_flow(joints[a], joints[b]) for a, b in zip(earlier, frames[1:], strict=True)]
            trajectories.append(np.concatenate([still, np.stack(moved)]))
            kept += [float(random.random() >= DROPPED)] * len(frames)
        fields = [torch.from_numpy(np.concatenate(one)).to(self._device) for one in (dense, trajectories)]
        features: Tensor = self._guidance.motion_encoder(*fields)
        return features * rows_like(torch.tensor(kept, device=self._device))

    def _encode_points(
        self, puppets: list[int], slots: list[NDArray[np.int64]], random: np.random.Generator
    ) -> list[Tensor]:
        """Point features, zero in clips whose points are dropped."""
        clips = []
        for puppet, frames in zip(puppets, slots, strict=True):
            shard, row = self._puppets.shard(puppet)
            groups = group_joints(np.asarray(shard.joints[row])[frames], self._embed(puppet))
            kept = float(random.random() >= DROPPED)
            clips.append([level * kept for level in spread_points(self._guidance.point_encoder, groups)])
        return [torch.cat(levels) for levels in zip(*clips, strict=True)]

    def _embed(self, puppet: int) -> F32:
        if puppet not in self._embeddings:
            shard, row = self._puppets.shard(puppet)
            image = from_levels(np.asarray(shard.images[row, :1])).to(self._device)
            random = np.random.default_rng([puppet, 1])
            self._embeddings[puppet] = embed_joints(self._dift, image, np.asarray(shard.joints[row, 0]), random)
        return self._embeddings[puppet]

    def validate(self, picture: Path) -> Mapping[str, float]:
        return self._judge.measure(self._denoiser, picture)

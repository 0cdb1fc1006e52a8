"""The paper's networks in eager PyTorch, with all the work that the published method does.

The blocks are diffusers' own: cross-attention over the single token with its queries, keys and softmax, the time
embedding once per frame, the residuals added again behind every down block. Two things are the method's and not
diffusers': where motion, points, poses and residuals go in, and that temporal context rows interleave the guidance
halves. Weights have the published names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNetSpatioTemporalConditionModel
from diffusers.models.attention import TemporalBasicTransformerBlock
from dispose_rt_export.builds.plan import RECIPES
from dispose_rt_export.checkpoints import Weights, load_strict
from dispose_rt_export.networks.dift import PROMPT, TIMESTEP, embed_prompt, rename_old_attention
from dispose_rt_export.networks.motion_encoder import MotionEncoder
from dispose_rt_export.networks.point_encoder import PointEncoder
from dispose_rt_export.networks.vae_encoder import load_posterior_encoder
from torch import Tensor, nn

from dispose_rt.contract import Sizes

GUIDANCE_HALVES = 2
CONDITIONING_SCALE = 1.0
UNUSED_TIMESTEP, UNUSED_PROMPT = 0, ""
"""The second DIFT pass: computed, passed on, and never used."""
_FEATURE_UP_BLOCKS, _UNUSED_UP_BLOCKS = 2, 3
_LOG_VARIANCE_LIMITS = (-30.0, 20.0)


class BaselineUNet(nn.Module):
    """Stable Video Diffusion's UNet with pose latents behind its input and residuals on its skip connections."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        interleave_contexts(model)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        added_time_ids: Tensor,
        pose_latents: Tensor,
        residuals: Sequence[Tensor] | None,
    ) -> Tensor:
        """Predict both guidance halves.

        Args:
            sample: [2, frames, 8, h, w], unconditional half first.
            timestep: float32 scalar.
            context: [2, 1, embed].
            added_time_ids: [2, ids].
            pose_latents: [2 * frames, c0, h, w].
            residuals: 13 of the ControlNet, [2 * frames, ...]; None is plain MimicMotion.

        Returns:
            The v-prediction, [2, frames, 4, h, w].
        """
        model, frames = self.model, sample.shape[1]
        shared = _block_arguments(model, sample, timestep, context, added_time_ids)
        hidden = model.conv_in(sample.flatten(0, 1)) + pose_latents
        skips: tuple[Tensor, ...] = (hidden,)
        for block in model.down_blocks:
            hidden, states = _run_block(block, hidden, shared)
            skips += states
            if residuals is not None:  # the whole list once more: what is there already gets its residual again
                skips = tuple(skip + residual for skip, residual in zip(skips, residuals[:-1], strict=False))
        hidden = _run_block(model.mid_block, hidden, shared)
        if residuals is not None:
            hidden = hidden + residuals[-1]
        for block in model.up_blocks:
            count = len(block.resnets)
            own, skips = skips[-count:], skips[:-count]
            hidden = _run_block(block, hidden, {**shared, "res_hidden_states_tuple": own})
        predicted: Tensor = model.conv_out(model.conv_act(model.conv_norm_out(hidden)))
        return torch.unflatten(predicted, 0, (GUIDANCE_HALVES, frames))


class BaselineControlNet(nn.Module):
    """DisPose's ControlNet with its motion encoder and its point adapter: all of `DisPose.pth`.

    Args:
        model: a UNet of the published configuration, whose encoder half is taken over.
        dift_channels: width of a joint's embedding.
    """

    def __init__(self, model: nn.Module, dift_channels: int) -> None:
        super().__init__()
        source: Any = model
        channels = source.config.block_out_channels
        for name in ("conv_in", "time_proj", "time_embedding", "add_time_proj", "add_embedding"):
            self.add_module(name, getattr(source, name))
        self.down_blocks: Any = source.down_blocks
        self.mid_block: Any = source.mid_block
        widths = [channels[0]]
        for block, width in zip(source.down_blocks, channels, strict=True):
            widths += [width] * (len(block.resnets) + len(block.downsamplers or ()))
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, kernel_size=1) for width in widths)
        self.controlnet_mid_block = nn.Conv2d(channels[-1], channels[-1], kernel_size=1)
        self.controlnet_cond_embedding = MotionEncoder(channels[0])
        self.point_adapter = PointEncoder(dift_channels, channels)
        interleave_contexts(self)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        added_time_ids: Tensor,
        motion_features: Tensor,
        point_features: Sequence[Tensor],
    ) -> list[Tensor]:
        """Compute the 13 residuals of both guidance halves.

        Args:
            sample: [2, frames, 8, h, w], unconditional half first.
            timestep: float32 scalar.
            context: [2, 1, embed].
            added_time_ids: [2, ids].
            motion_features: [2 * frames, c0, h, w], of `controlnet_cond_embedding`.
            point_features: four levels, [2 * frames, c_i, ...].
        """
        shared = _block_arguments(self, sample, timestep, context, added_time_ids)
        conv_in: Any = self.conv_in
        hidden = conv_in(sample.flatten(0, 1)) + motion_features
        states: list[Tensor] = [hidden]
        for block, points in zip(self.down_blocks, point_features, strict=True):
            hidden, outputs = _run_block(block, hidden, shared)
            states += outputs
            hidden = hidden + points  # behind the block's residuals
        middle = _run_block(self.mid_block, hidden, shared)
        residuals = [conv(state) for conv, state in zip(self.controlnet_down_blocks, states, strict=True)]
        return [residual * CONDITIONING_SCALE for residual in (*residuals, self.controlnet_mid_block(middle))]


def _block_arguments(
    model: Any, sample: Tensor, timestep: Tensor, context: Tensor, added_time_ids: Tensor
) -> dict[str, Any]:
    """Return the inputs of every block: time embedding and context, once per frame."""
    halves, frames = sample.shape[:2]
    time = model.time_embedding(model.time_proj(timestep.expand(halves)).to(sample.dtype))
    ids = model.add_time_proj(added_time_ids.flatten()).reshape(halves, -1)
    time = time + model.add_embedding(ids.to(time.dtype))
    return {
        "temb": time.repeat_interleave(frames, dim=0),
        "encoder_hidden_states": context.repeat_interleave(frames, dim=0),
        "image_only_indicator": sample.new_zeros(halves, frames),
    }


def _run_block(block: Any, hidden: Tensor, arguments: Mapping[str, Any]) -> Any:
    if not getattr(block, "has_cross_attention", False):
        arguments = {name: value for name, value in arguments.items() if name != "encoder_hidden_states"}
    return block(hidden_states=hidden, **arguments)


def interleave_contexts(model: nn.Module) -> None:
    """Give row r of every temporal block the context of guidance half r mod 2, as the published model ran.

    The version of diffusers that it ran with laid out contexts position-major and rows batch-major; the present one
    lays out both batch-major.
    """
    for module in model.modules():
        if isinstance(module, TemporalBasicTransformerBlock):
            module.register_forward_pre_hook(_interleave, with_kwargs=True)


def _interleave(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    straight = torch.unflatten(named["encoder_hidden_states"], 0, (GUIDANCE_HALVES, -1))
    return inputs, {**named, "encoder_hidden_states": straight.transpose(0, 1).flatten(0, 1)}


class BaselineDift(nn.Module):
    """Diffusion features of one image, and a second pass whose result is not used."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        with torch.device("meta"):
            autoencoder = AutoencoderKL.from_config(dict(weights.configs["sd15_vae"]))
            unet = UNet2DConditionModel.from_config(dict(weights.configs["sd15_unet"]))
        tensors = rename_old_attention(weights.tensors("sd15_vae"))
        self.posterior = load_posterior_encoder(autoencoder, tensors, weights.source("sd15_vae"))
        self.scaling_factor = float(autoencoder.config.scaling_factor)
        published = unet.state_dict().keys()
        self.up_blocks: Any = unet.up_blocks[:_UNUSED_UP_BLOCKS]
        unet.up_blocks = self.up_blocks
        unet.conv_norm_out, unet.conv_out = None, nn.Identity()
        unused = published - unet.state_dict().keys()
        load_strict(unet, weights.tensors("sd15_unet"), weights.source("sd15_unet"), unused)
        self.unet: Any = unet
        self.register_buffer("prompt", embed_prompt(weights, PROMPT))
        self.register_buffer("unused_prompt", embed_prompt(weights, UNUSED_PROMPT))
        self.alphas = DDIMScheduler.from_config(dict(weights.configs["sd15_scheduler"])).alphas_cumprod

    def forward(self, image: Tensor, noises: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Run both passes, each from its own draws and through the encoder of the autoencoder.

        Args:
            image: float32 [1, 3, height, width], -1..1.
            noises: four draws [8, 4, height/8, width/8]: posterior and diffusion noise of the first pass, then of the
                second one.

        Returns:
            The features [1, dift, height/16, width/16], and those of the second pass.
        """
        features = self._run(image, self.prompt, TIMESTEP, _FEATURE_UP_BLOCKS, noises[:2])
        unused = self._run(image, self.unused_prompt, UNUSED_TIMESTEP, _UNUSED_UP_BLOCKS, noises[2:])
        return features, unused

    def _run(self, image: Tensor, prompt: Any, timestep: int, up_blocks: int, noises: Sequence[Tensor]) -> Tensor:
        mean, log_variance = self.posterior(image)
        deviation = (0.5 * log_variance.clamp(*_LOG_VARIANCE_LIMITS)).exp()
        latents = (mean + deviation * noises[0]) * self.scaling_factor
        alpha = float(self.alphas[timestep])
        noisy = (alpha**0.5 * latents + (1 - alpha) ** 0.5 * noises[1]).to(prompt.dtype)
        self.unet.up_blocks = self.up_blocks[:up_blocks]
        members: Tensor = self.unet(noisy, timestep, prompt.expand(len(noisy), -1, -1)).sample
        return members.mean(dim=0, keepdim=True)


def build_baseline_unet(weights: Weights) -> BaselineUNet:
    """Build the UNet in float32 evaluation mode; it holds every tensor that is published.

    Raises:
        CheckpointError: the published file does not hold exactly the tensors of the network.
    """
    model = _empty_unet(weights)
    load_strict(model, weights.tensors("unet"), weights.source("unet"))
    return BaselineUNet(model.eval())


def build_baseline_controlnet(weights: Weights) -> BaselineControlNet:
    """Build the ControlNet, its motion encoder and its point adapter in float32 evaluation mode.

    Raises:
        CheckpointError: the published file does not hold exactly the tensors of the network.
    """
    tensors = weights.tensors("controlnet")
    embedding = tensors.get("point_adapter.model_list.0.mlp.0.weight")
    with torch.device("meta"):
        width = Sizes.dift if embedding is None else embedding.shape[-1]
        controlnet = BaselineControlNet(_empty_unet(weights), width)
    load_strict(controlnet, tensors, weights.source("controlnet"))
    return controlnet.eval()


def _empty_unet(weights: Weights) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = UNetSpatioTemporalConditionModel.from_config(dict(weights.configs["svd_unet"]))
    return model


_BUILDERS: Mapping[str, Any] = {
    "unet": build_baseline_unet,
    "controlnet": build_baseline_controlnet,
    "dift": BaselineDift,
}


def load_baseline(network: str, weights: Weights, device: str, dtype: torch.dtype) -> Any:
    """Make one network of the baseline.

    Args:
        network: "unet", "controlnet" or "dift" for those of this module, else a network of the exporter.
        weights: where its tensors come from.
        device: where it runs.
        dtype: of its parameters.

    Returns:
        The module in evaluation mode, without gradients.
    """
    build = _BUILDERS[network] if network in _BUILDERS else RECIPES[network].build
    return build(weights).eval().requires_grad_(False).to(device, dtype)

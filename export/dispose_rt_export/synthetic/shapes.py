"""Names and shapes of the tensors in every published weight file, measured on empty modules of any width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..checkpoints import Config
from ..networks.cmp import CmpImageEncoder, PublishedCmpDecoder
from ..networks.controlnet import ControlNet
from ..networks.motion_encoder import MotionEncoder
from ..networks.point_encoder import PointEncoder
from ..networks.pose_net import PoseNet
from ..networks.spatio_temporal import DenoiserConfig

Shapes: TypeAlias = dict[str, tuple[int, ...]]
Configs: TypeAlias = Mapping[str, Config]

DIFT_LEVEL = 2
"""Level of the SD 1.5 UNet whose width the DIFT features have."""

_POSITIONS = "embeddings.position_ids"
_OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names that the published SD 1.5 autoencoder has, from before diffusers renamed them."""


@dataclass(frozen=True)
class _WeightFile:
    """One published weight file.

    Attributes:
        shapes: its tensors, from the configurations.
        dtype: stored dtype of floating-point tensors.
    """

    shapes: Callable[[Configs], Shapes]
    dtype: torch.dtype


def tensor_shapes(file: str, configs: Configs) -> Shapes:
    """Measure the tensors of a weight file without allocating them.

    Args:
        file: a key of STORED_DTYPES.
        configs: parsed configuration files by their names in `checkpoints.CONFIG_FILES`.

    Returns:
        Shapes by name in the file.
    """
    with torch.device("meta"):
        return _WEIGHT_FILES[file].shapes(configs)


def _shapes(module: nn.Module, prefix: str = "") -> Shapes:
    return {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _mimicmotion_shapes(configs: Configs) -> Shapes:
    config = dict(configs["svd_unet"])
    unet = UNetSpatioTemporalConditionModel.from_config(config)
    return _shapes(unet, "unet.") | _shapes(PoseNet(config["block_out_channels"][0]), "pose_net.")


def _dispose_shapes(configs: Configs) -> Shapes:
    config = dict(configs["svd_unet"])
    channels = config["block_out_channels"]
    encoder_parts = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")
    shapes = _shapes(UNetSpatioTemporalConditionModel.from_config(config))
    encoder = {name: shape for name, shape in shapes.items() if name.startswith(encoder_parts)}
    emitters = _shapes(ControlNet(DenoiserConfig.from_mapping(config)))
    dift_channels = configs["sd15_unet"]["block_out_channels"][DIFT_LEVEL]
    return {
        **encoder,
        **{name: shape for name, shape in emitters.items() if name.startswith("controlnet_")},
        **_shapes(PointEncoder(dift_channels, channels), "point_adapter."),
        **_shapes(MotionEncoder(channels[0]), "controlnet_cond_embedding."),
    }


def _cmp_shapes(configs: Configs) -> Shapes:
    return _shapes(CmpImageEncoder(), "module.") | _shapes(PublishedCmpDecoder(), "module.")


def _svd_vae_shapes(configs: Configs) -> Shapes:
    return _shapes(AutoencoderKLTemporalDecoder.from_config(dict(configs["svd_vae"])))


def _image_encoder_shapes(configs: Configs) -> Shapes:
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**configs["image_encoder"]))
    positions = model.vision_model.embeddings.num_positions
    return {f"vision_model.{_POSITIONS}": (1, positions), **_shapes(model)}


def _sd15_unet_shapes(configs: Configs) -> Shapes:
    return _shapes(UNet2DConditionModel.from_config(dict(configs["sd15_unet"])))


def _sd15_vae_shapes(configs: Configs) -> Shapes:
    shapes = _shapes(AutoencoderKL.from_config(dict(configs["sd15_vae"])))
    return {_old_attention_name(name): shape for name, shape in shapes.items()}


def _old_attention_name(name: str) -> str:
    for new, old in _OLD_ATTENTION_NAMES.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def _text_encoder_shapes(configs: Configs) -> Shapes:
    config = CLIPTextConfig(**configs["sd15_text_encoder"])
    prefix = "text_model."  # published files have it; transformers dropped it
    shapes = {prefix + name.removeprefix(prefix): shape for name, shape in _shapes(CLIPTextModel(config)).items()}
    return {f"{prefix}{_POSITIONS}": (1, config.max_position_embeddings), **shapes}


_WEIGHT_FILES: Mapping[str, _WeightFile] = {
    "mimicmotion": _WeightFile(_mimicmotion_shapes, torch.float16),
    "dispose": _WeightFile(_dispose_shapes, torch.float32),
    "cmp": _WeightFile(_cmp_shapes, torch.float32),
    "svd_vae": _WeightFile(_svd_vae_shapes, torch.float16),
    "image_encoder": _WeightFile(_image_encoder_shapes, torch.float16),
    "sd15_unet": _WeightFile(_sd15_unet_shapes, torch.float16),
    "sd15_vae": _WeightFile(_sd15_vae_shapes, torch.float16),
    "sd15_text_encoder": _WeightFile(_text_encoder_shapes, torch.float16),
}
"""Keys are those of `checkpoints.FILES`."""

STORED_DTYPES: Mapping[str, torch.dtype] = {name: file.dtype for name, file in _WEIGHT_FILES.items()}
"""Dtype that each weight file stores its floating-point tensors in; all weight files that hold named tensors."""

"""Writes a checkpoint folder in the published layout, with toy widths and made-up weights, for the demo and the tests.

    python export/toy_checkpoint.py --output out/toy

File names, formats, tensor names and dtypes are those of the published files; see `toy_weights` for the values. The
pose networks are real in their way: they find the puppet of `puppet`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: make the relative imports below work
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "export"

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from .checkpoints import FILES, SD15, SVD
from .networks.cmp import CmpImageEncoder, PublishedCmpDecoder
from .networks.controlnet import ControlNet
from .networks.motion_encoder import MotionEncoder
from .networks.point_encoder import PointEncoder
from .networks.pose_net import PoseNet
from .networks.spatio_temporal import DenoiserConfig
from .toy_configs import DIFT_CHANNELS, UNET_CHANNELS, config_files, text_files
from .toy_pose_networks import write_pose_networks
from .toy_weights import Shapes, draw_tensors

_POSITIONS = "embeddings.position_ids"
_OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names that the published SD 1.5 autoencoder has, from before diffusers renamed them."""


@dataclass(frozen=True)
class _WeightFile:
    """One published weight file: the shapes of its tensors, and the dtype that floating-point ones are stored in."""

    shapes: Callable[[], Shapes]
    dtype: torch.dtype


def write_toy_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """Write the whole checkpoint folder; the same seed gives the same files.

    Args:
        folder: created where missing; files in it are overwritten.
        seed: of the made-up weights, 0 or more.

    Returns:
        The folder.
    """
    for relative, text in text_files().items():
        _parent_made(folder / relative).write_text(text, encoding="utf-8")
    for name, file in _WEIGHT_FILES.items():
        path = _parent_made(folder / FILES[name].paths[0])
        tensors = draw_tensors(name, file.shapes(), seed)
        stored = {key: _cast(tensor, file.dtype) for key, tensor in tensors.items()}
        if path.suffix == ".safetensors":
            save_file(stored, path, metadata={"format": "pt"})
        elif name == "cmp":
            torch.save({"state_dict": stored, "step": 42000}, path)
        else:
            torch.save(stored, path)
    write_pose_networks(_parent_made(folder / FILES["person_detector"].paths[0]).parent)
    return folder


def _parent_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _shapes(module: nn.Module, prefix: str = "") -> Shapes:
    return {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _config(path: str) -> dict[str, Any]:
    return dict(config_files()[path])


def _mimicmotion_shapes() -> Shapes:
    unet = UNetSpatioTemporalConditionModel.from_config(_config(f"{SVD}/unet/config.json"))
    return _shapes(unet, "unet.") | _shapes(PoseNet(UNET_CHANNELS[0]), "pose_net.")


def _dispose_shapes() -> Shapes:
    config = _config(f"{SVD}/unet/config.json")
    encoder_parts = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")
    shapes = _shapes(UNetSpatioTemporalConditionModel.from_config(config))
    encoder = {name: shape for name, shape in shapes.items() if name.startswith(encoder_parts)}
    emitters = _shapes(ControlNet(DenoiserConfig.from_mapping(config)))
    return {
        **encoder,
        **{name: shape for name, shape in emitters.items() if name.startswith("controlnet_")},
        **_shapes(PointEncoder(DIFT_CHANNELS, UNET_CHANNELS), "point_adapter."),
        **_shapes(MotionEncoder(UNET_CHANNELS[0]), "controlnet_cond_embedding."),
    }


def _cmp_shapes() -> Shapes:
    return _shapes(CmpImageEncoder(), "module.") | _shapes(PublishedCmpDecoder(), "module.")


def _svd_vae_shapes() -> Shapes:
    return _shapes(AutoencoderKLTemporalDecoder.from_config(_config(f"{SVD}/vae/config.json")))


def _image_encoder_shapes() -> Shapes:
    config = CLIPVisionConfig(**_config(f"{SVD}/image_encoder/config.json"))
    model = CLIPVisionModelWithProjection(config)
    positions = model.vision_model.embeddings.num_positions
    return {f"vision_model.{_POSITIONS}": (1, positions), **_shapes(model)}


def _sd15_unet_shapes() -> Shapes:
    return _shapes(UNet2DConditionModel.from_config(_config(f"{SD15}/unet/config.json")))


def _sd15_vae_shapes() -> Shapes:
    shapes = _shapes(AutoencoderKL.from_config(_config(f"{SD15}/vae/config.json")))
    return {_old_attention_name(name): shape for name, shape in shapes.items()}


def _old_attention_name(name: str) -> str:
    for new, old in _OLD_ATTENTION_NAMES.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def _text_encoder_shapes() -> Shapes:
    config = CLIPTextConfig(**_config(f"{SD15}/text_encoder/config.json"))
    prefix = "text_model."  # published files have it; transformers dropped it
    shapes = {prefix + name.removeprefix(prefix): shape for name, shape in _shapes(CLIPTextModel(config)).items()}
    return {f"{prefix}{_POSITIONS}": (1, config.max_position_embeddings), **shapes}


def _without_memory(shapes: Callable[[], Shapes]) -> Callable[[], Shapes]:
    def measure() -> Shapes:
        with torch.device("meta"):
            return shapes()

    return measure


_WEIGHT_FILES: Mapping[str, _WeightFile] = {
    "mimicmotion": _WeightFile(_without_memory(_mimicmotion_shapes), torch.float16),
    "dispose": _WeightFile(_without_memory(_dispose_shapes), torch.float32),
    "cmp": _WeightFile(_without_memory(_cmp_shapes), torch.float32),
    "svd_vae": _WeightFile(_without_memory(_svd_vae_shapes), torch.float16),
    "image_encoder": _WeightFile(_without_memory(_image_encoder_shapes), torch.float16),
    "sd15_unet": _WeightFile(_without_memory(_sd15_unet_shapes), torch.float16),
    "sd15_vae": _WeightFile(_without_memory(_sd15_vae_shapes), torch.float16),
    "sd15_text_encoder": _WeightFile(_without_memory(_text_encoder_shapes), torch.float16),
}
"""Keys are those of `checkpoints.FILES`."""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write a toy checkpoint in the published layout.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up weights (default: 0)")
    arguments = parser.parse_args()
    folder = write_toy_checkpoint(arguments.output, seed=arguments.seed)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"toy checkpoint: {folder} ({size / 1e6:.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Everything that the training takes from the project, in one place: the training reads nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dispose_rt.appearance import PointGroups, group_points
from dispose_rt.conditions import FPS_ID, clip_pixels
from dispose_rt.contract import CMP_SIZE_PX, RESIDUAL_MULTIPLICITY
from dispose_rt.errors import CheckpointError, DisposeError, InputError
from dispose_rt.framing import fit_reference
from dispose_rt.motion import nearest_table, sparse_hints, trajectory_impulses
from dispose_rt.pose.draw import draw_pose
from dispose_rt.puppet import JOINT_NAMES, Costume, Stance, draw_puppet, place_joints
from dispose_rt.scheduler import SchedulerConstants, karras_schedule
from dispose_rt.types import Pose, Track
from dispose_rt_export.checkpoints import CONFIG_FILES, FILES, SD15, SVD, Checkpoint
from dispose_rt_export.networks.cmp import build_cmp_flow_decoder, build_cmp_image_encoder
from dispose_rt_export.networks.controlnet import ControlNet
from dispose_rt_export.networks.dift import PROMPT, Dift, build_dift, embed_prompt
from dispose_rt_export.networks.image_encoder import ImageEncoder, build_image_encoder
from dispose_rt_export.networks.motion_encoder import MotionEncoder
from dispose_rt_export.networks.point_encoder import PointEncoder
from dispose_rt_export.networks.pose_net import PoseNet
from dispose_rt_export.networks.spatio_temporal import DenoiserConfig
from dispose_rt_export.networks.unet import UNet
from dispose_rt_export.published_shapes import STORED_DTYPES, tensor_shapes
from dispose_rt_export.toy_checkpoint import write_toy_checkpoint
from dispose_rt_export.toy_configs import config_files
from dispose_rt_export.toy_weights import draw_tensors
from dispose_rt_export.whole_body import BODY, landmark_weights

__all__ = [
    "BODY",
    "CMP_SIZE_PX",
    "FILES",
    "FPS_ID",
    "JOINT_NAMES",
    "PROMPT",
    "RESIDUAL_MULTIPLICITY",
    "SD15",
    "STORED_DTYPES",
    "SVD",
    "Checkpoint",
    "CheckpointError",
    "ControlNet",
    "Costume",
    "DenoiserConfig",
    "Dift",
    "DisposeError",
    "ImageEncoder",
    "InputError",
    "MotionEncoder",
    "PointEncoder",
    "PointGroups",
    "Pose",
    "PoseNet",
    "SchedulerConstants",
    "Stance",
    "Track",
    "UNet",
    "build_cmp_flow_decoder",
    "build_cmp_image_encoder",
    "build_dift",
    "build_image_encoder",
    "clip_pixels",
    "config_files",
    "draw_pose",
    "draw_puppet",
    "draw_tensors",
    "embed_prompt",
    "fit_reference",
    "group_points",
    "karras_schedule",
    "landmark_weights",
    "measure_shapes",
    "nearest_table",
    "place_joints",
    "sparse_hints",
    "trajectory_impulses",
    "write_tensors",
    "write_toy_checkpoint",
]


def measure_shapes(file: str, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Tensors of a published weight file by name.

    Args:
        file: its name in FILES.
        configs: parsed configuration files by their path in the published layout.
    """
    return tensor_shapes(file, {name: configs[published.paths[0]] for name, published in CONFIG_FILES.items()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a published weight file in the format that its name says."""
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path, metadata={"format": "pt"})
    else:
        torch.save(dict(tensors), path)

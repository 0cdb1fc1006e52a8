"""Trained weights as they are kept: half precision, one file per part, small enough for a repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .curriculum import Curriculum
from .loop import read_state
from .project import InputError

Tensors = dict[str, Tensor]

FOLDER = Path(__file__).parent / "trained"
"""Where the weights lie that were trained with this code."""
LARGEST_FILE_BYTES = 16 * 1024 * 1024

PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"denoiser": ("clips", "stills"), "dift": ("dift",), "guidance": ("guidance",)}
)
"""Part -> the stages that leave it, the last one first; the part "autoencoder" is always there."""


def gather_weights(curriculum: Curriculum) -> dict[str, Tensors]:
    """Averaged float32 weights of every part that has been trained, by name.

    Raises:
        InputError: the autoencoder or the denoiser has not been trained.
    """
    parts = {"autoencoder": dict(curriculum.autoencoder().state_dict())}
    for part, stages in PARTS.items():
        state = next((one for one in (read_state(curriculum.folder, stage) for stage in stages) if one), None)
        if state is not None:
            parts[part] = dict(state["averages"])
    if "denoiser" not in parts:
        raise InputError(f"{curriculum.folder} holds no trained denoiser: train the stage 'stills' first")
    return parts


def save_weights(parts: Mapping[str, Tensors], folder: Path) -> None:
    """Write every part in half precision. Tensors that are all zero are left out: closed layers cost nothing.

    Raises:
        InputError: a file would be larger than LARGEST_FILE_BYTES, or a weight leaves the range of half precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part, tensors in parts.items():
        half = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items() if tensor.any()}
        lost = [name for name, tensor in half.items() if not torch.isfinite(tensor).all()]
        if lost:
            raise InputError(f"{part} leaves the range of half precision in {', '.join(lost)}")
        size = sum(tensor.numel() * tensor.element_size() for tensor in half.values())
        if size > LARGEST_FILE_BYTES - 1024 * len(half):
            raise InputError(f"{part} takes {size / 2**20:.1f} MiB; at most {LARGEST_FILE_BYTES / 2**20:.0f} MiB fit")
        save_file(half, folder / f"{part}.safetensors")


def load_weights(folder: Path = FOLDER) -> dict[str, Tensors]:
    """Read what `save_weights` wrote, as float32; tensors that are all zero are missing.

    Raises:
        InputError: there are no such files.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no trained weights")
    return {path.stem: {name: tensor.float() for name, tensor in load_file(path).items()} for path in files}


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module weights in which tensors that are all zero may be missing.

    Raises:
        InputError: a name is not of this module.
    """
    unknown = tensors.keys() - module.state_dict().keys()
    if unknown:
        raise InputError(f"{type(module).__name__} has no {', '.join(sorted(unknown))}")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    module.load_state_dict(zeros | dict(tensors))

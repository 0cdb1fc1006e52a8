"""Writes a checkpoint folder in the published layout, with toy widths and made-up weights, for the demo and the tests.

    python -m dispose_rt_export.synthetic.toy_checkpoint --output out/toy

File names, formats, tensor names and dtypes are those of the published files; see `toy_weights` for the values. The
pose networks are real in their way: they find the puppet of `dispose_rt.puppet`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints import FILES
from .configs import configs_of, toy_files
from .shapes import STORED_DTYPES, tensor_shapes
from .toy_pose_networks import write_pose_networks
from .toy_weights import draw_tensors


def write_toy_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """Write the whole checkpoint folder; the same seed gives the same files.

    Args:
        folder: created where missing; files in it are overwritten.
        seed: of the made-up weights, 0 or more.

    Returns:
        The folder.
    """
    for relative, text in toy_files().items():
        _parent_made(folder / relative).write_text(text, encoding="utf-8")
    configs = configs_of("toy")
    for name, dtype in STORED_DTYPES.items():
        path = _parent_made(folder / FILES[name].paths[0])
        tensors = draw_tensors(name, tensor_shapes(name, configs), seed)
        stored = {key: _cast(tensor, dtype) for key, tensor in tensors.items()}
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

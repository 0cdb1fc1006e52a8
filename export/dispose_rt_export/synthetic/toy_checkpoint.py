"""Writes a checkpoint folder in the published layout, with toy widths and made-up weights, for the demo and the tests.

    python -m dispose_rt_export.synthetic.toy_checkpoint --output out/toy
    python -m dispose_rt_export.synthetic.toy_checkpoint --output out/full --full

File names, formats, tensor names and dtypes are those of the published files; see `toy_weights` for the values. The
pose networks are real in their way: they find the puppet of `dispose_rt.puppet`. With --full the files have the
published sizes as well, and animate nothing; see `full_checkpoint`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from dispose_rt.errors import OutputError

from ..checkpoints import FILES
from .configs import configs_of, small_files
from .full_checkpoint import write_full_checkpoint
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
    for relative, text in small_files("toy").items():
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
    parser.add_argument(
        "--full", action="store_true", help="files of published size, for a rehearsal of a build: 10 GB"
    )
    arguments = parser.parse_args()
    if arguments.full:
        try:
            folder = write_full_checkpoint(arguments.output, seed=arguments.seed, progress=_Bar())
        except OutputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    else:
        folder = write_toy_checkpoint(arguments.output, seed=arguments.seed)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{'full' if arguments.full else 'toy'} checkpoint: {folder} ({size / 1e6:,.0f} MB)")
    return 0


class _Bar:
    """A bar of bytes on standard error."""

    def __init__(self) -> None:
        self._bar = tqdm(unit="B", unit_scale=True, dynamic_ncols=True)

    def __call__(self, path: str, done: int, total: int) -> None:
        """Show the progress."""
        self._bar.total = total
        self._bar.set_postfix_str(Path(path).name, refresh=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()


if __name__ == "__main__":
    sys.exit(main())

"""Pictures of a training: rows of frames, written as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

U8 = NDArray[np.uint8]


def to_levels(frames: Tensor) -> U8:
    """Turn [n, 3, height, width], -1..1, into uint8 [n, height, width, 3]; cut off as the product does it."""
    levels = ((frames.float() / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
    pixels: U8 = levels.permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def from_levels(frames: NDArray[np.generic]) -> Tensor:
    """Turn uint8 [n, height, width, 3] into float32 [n, 3, height, width], -1..1."""
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def from_planes(frames: NDArray[np.generic]) -> Tensor:
    """Turn uint8 [n, 3, height, width] into float32 of that shape, -1..1."""
    return torch.from_numpy(np.array(frames)).float() / 127.5 - 1


def save_rows(path: Path, rows: Sequence[U8], scale: int = 1) -> None:
    """Write rows of frames, each uint8 [n, height, width, 3] of one size, below each other."""
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    if scale != 1:
        sheet = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    cv2.imwrite(str(path), np.ascontiguousarray(sheet[..., ::-1]))


def psnr(first: U8, second: U8) -> float:
    """Peak signal-to-noise ratio of pictures of one shape, in dB, over all of their pixels."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-9)))

"""Motion fields of training clips, as a run computes them: the trajectory flow of the joints, and CMP's dense flow."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from .data import PuppetSet
from .project import (
    CMP_SIZE_PX,
    Checkpoint,
    Track,
    build_cmp_flow_decoder,
    build_cmp_image_encoder,
    nearest_table,
    sparse_hints,
    trajectory_impulses,
)
from .puppets import HEIGHT_PX, WIDTH_PX

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_TAPS, _SIGMA_PX = 199, 20.0
_FRAMES_AT_ONCE = 4


def trajectory_flow(before: F32, after: F32) -> F32:
    """Smoothed displacement of the joints between two frames.

    Args:
        before: float32 [18, 2], joints of the earlier frame, fractions of the frame.
        after: likewise, of the later one.

    Returns:
        float32 [2, height, width], pixels, channel 0 = x.
    """
    impulses = trajectory_impulses(_track(np.stack([before, after])), HEIGHT_PX, WIDTH_PX)
    flow = np.zeros((HEIGHT_PX, WIDTH_PX, 2))
    for (x, y), value in zip(impulses.positions_px[0], impulses.flow_px[0], strict=True):
        flow[y, x] = value
    profile = cv2.getGaussianKernel(_TAPS, _SIGMA_PX, cv2.CV_64F)
    smooth = cv2.sepFilter2D(flow, cv2.CV_64F, profile, profile, borderType=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(smooth.transpose(2, 0, 1), np.float32)


def _track(joints: NDArray[np.floating]) -> Track:
    return Track(joints.astype(np.float64), np.ones(joints.shape[:2], bool))


class DenseFlows:
    """CMP's flow from the reference to every frame of a clip, computed when it is first asked for, and kept.

    Args:
        puppets: training set.
        checkpoint: that CMP is read from.
        folder: of the files.
        device: where CMP runs.
    """

    def __init__(self, puppets: PuppetSet, checkpoint: Checkpoint, folder: Path, device: torch.device) -> None:
        self._puppets = puppets
        self._checkpoint = checkpoint
        self._folder = folder
        self._device = device
        self._networks: tuple[torch.nn.Module, torch.nn.Module] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def clip(self, puppet: int) -> F32:
        """float32 [1 + frames, 2, height, width], pixels; zero for the reference. Kept in half precision."""
        path = self._folder / f"{puppet:06d}.npy"
        if not path.exists():
            shard, row = self._puppets.shard(puppet)
            flow = self._propagate(np.asarray(shard.images[row, 0]), np.asarray(shard.joints[row]))
            part = path.with_name(f".{path.name}")
            np.save(part, flow.astype(np.float16))
            part.replace(path)
        kept: F32 = np.load(path).astype(np.float32)
        return kept

    @torch.no_grad()
    def _propagate(self, image: U8, joints: F32) -> F32:
        encoder, decoder = self._load()
        rows, columns = nearest_table(HEIGHT_PX, CMP_SIZE_PX), nearest_table(WIDTH_PX, CMP_SIZE_PX)
        large = image[rows][:, columns].transpose(2, 0, 1)[None].astype(np.float32) / 255 * 2 - 1
        features = encoder(torch.from_numpy(large).to(self._device))
        hints = sparse_hints(_track(joints), HEIGHT_PX, WIDTH_PX)
        frames = len(joints)
        sparse, mask = np.zeros((2, frames - 1, 2, CMP_SIZE_PX, CMP_SIZE_PX), np.float32)
        for joint, (x, y) in enumerate(hints.positions_px):
            sparse[:, :, y, x] = hints.flow_px[:, joint]
            mask[:, :, y, x] = 1
        flow = np.zeros((frames, 2, HEIGHT_PX, WIDTH_PX), np.float32)
        back_rows, back_columns = nearest_table(CMP_SIZE_PX, HEIGHT_PX), nearest_table(CMP_SIZE_PX, WIDTH_PX)
        scale = np.array([WIDTH_PX / CMP_SIZE_PX, HEIGHT_PX / CMP_SIZE_PX], np.float32)[:, None, None]
        for start in range(0, frames - 1, _FRAMES_AT_ONCE):
            part = slice(start, min(start + _FRAMES_AT_ONCE, frames - 1))
            given = (torch.from_numpy(array[part]).to(self._device) for array in (sparse, mask))
            dense = decoder(*features, *given).cpu().numpy()
            flow[1:][part] = dense[:, :, back_rows][:, :, :, back_columns] * scale
        return flow

    def _load(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        if self._networks is None:
            encoder, decoder = build_cmp_image_encoder(self._checkpoint), build_cmp_flow_decoder(self._checkpoint)
            self._networks = encoder.to(self._device), decoder.to(self._device)
        return self._networks

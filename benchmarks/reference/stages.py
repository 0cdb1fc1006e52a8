"""The stages that the published method runs once per clip, in its own order of work.

Where its description leaves something open, the cheaper reading is taken: the autoencoder encodes a DIFT pass's image
once and not eight times, CMP runs over all frames in one batch, and its batch norms are folded.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dispose_rt.contract import CLIP_SIZE_PX, CMP_SIZE_PX, DIFT_ENSEMBLE
from dispose_rt.stages.conditions import CLIP_MEAN, CLIP_STD
from dispose_rt.types import F32, F64, JOINTS, U8, Track

GAUSSIAN_TAPS, GAUSSIAN_SIGMA_PX = 199, 20.0


def joints_px(track: Track, height: int, width: int) -> F64:
    """Return joints in pixels within the image, float64 [frames, 18, 2]; missing joints are at (0, 0)."""
    size = np.array([width, height], np.float64)
    pixels = np.zeros(track.joints.shape)
    for frame, joint in np.argwhere(track.visible):
        pixels[frame, joint] = np.minimum(np.maximum(track.joints[frame, joint] * size, 0), size - 1)
    return pixels


def filter_trajectories(track: Track, height: int, width: int) -> F32:
    """Write the joints' displacements into maps and run OpenCV's 199 x 199 filter over every map, in float64.

    On the CPU, frame by frame, as the published method does.

    Args:
        track: the followed person; frame 0 is the reference.
        height: rows of the maps.
        width: columns of the maps.

    Returns:
        float32 [frames - 1, 2, height, width], pixels from each frame to the next.
    """
    pixels = joints_px(track, height, width)
    profile = cv2.getGaussianKernel(GAUSSIAN_TAPS, GAUSSIAN_SIGMA_PX)
    kernel = profile @ profile.T
    maps = np.zeros((len(pixels) - 1, height, width, 2))
    for frame, flow in enumerate(maps):
        for joint in range(JOINTS):
            if track.visible[frame, joint]:
                x, y = pixels[frame, joint]
                flow[int(y), int(x)] = pixels[frame + 1, joint] - pixels[frame, joint]
        maps[frame] = cv2.filter2D(flow, cv2.CV_64F, kernel, borderType=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(maps.transpose(0, 3, 1, 2), np.float32)


def draw_hints(track: Track, height: int, width: int) -> tuple[F32, F32]:
    """Write the displacement of each joint from the reference to each frame into CMP's maps.

    Returns:
        Flow and mask, each float32 [frames - 1, 2, 384, 384]. Missing joints write at (0, 0).
    """
    pixels = joints_px(track, height, width) / (width, height) * CMP_SIZE_PX
    flow = np.zeros((len(pixels) - 1, 2, CMP_SIZE_PX, CMP_SIZE_PX), np.float32)
    mask = np.zeros_like(flow)
    for frame in range(len(flow)):
        for joint in range(JOINTS):
            x, y = pixels[0, joint]
            flow[frame, :, int(y), int(x)] = pixels[frame + 1, joint] - pixels[0, joint]
            mask[frame, :, int(y), int(x)] = 1
    return flow, mask


def propagate_motion(encoder: nn.Module, decoder: nn.Module, image: U8, track: Track, device: str) -> Tensor:
    """Run all of CMP for every frame, its image encoder too, in float32.

    Args:
        encoder: the exporter's "cmp_image_encoder".
        decoder: the exporter's "cmp_flow_decoder".
        image: uint8 [height, width, 3], RGB, the fitted reference.
        track: the followed person; frame 0 is the reference.
        device: where both networks are.

    Returns:
        float32 [frames - 1, 2, height, width], pixels from the reference.
    """
    height, width = image.shape[:2]
    flow, mask = (torch.from_numpy(maps).to(device) for maps in draw_hints(track, height, width))
    pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
    small = functional.interpolate(pixels, (CMP_SIZE_PX, CMP_SIZE_PX), mode="nearest") * 2 - 1
    dense = decoder(*encoder(small.repeat(len(flow), 1, 1, 1)), flow, mask)
    scale = torch.tensor([width, height], dtype=torch.float32, device=device) / CMP_SIZE_PX
    resized: Tensor = functional.interpolate(dense, (height, width), mode="nearest") * scale[:, None, None]
    return resized


def embed_joints(dift: nn.Module, image: U8, track: Track, noises: Sequence[Tensor], device: str) -> Tensor:
    """Run both DIFT passes, enlarge the features to the image's size, and read them at the reference's joints.

    Args:
        dift: BaselineDift.
        image: uint8 [height, width, 3], RGB, the fitted reference.
        track: the followed person; frame 0 is the reference.
        noises: see BaselineDift.
        device: where the network is.

    Returns:
        [18, dift] in the network's dtype; zero for a joint that is missing in the reference.
    """
    features, _ = dift(signed_pixels(image, device), noises)
    return read_joints(features, track, *image.shape[:2])


def read_joints(features: Tensor, track: Track, height: int, width: int) -> Tensor:
    """Enlarge a feature map [1, dift, rows, columns] to `width` rows and `height` columns, and read it at joints."""
    enlarged = functional.interpolate(features, (width, height), mode="bilinear")
    embeddings = features.new_zeros(JOINTS, features.shape[1])
    for joint in range(JOINTS):
        if track.visible[0, joint]:
            x, y = track.joints[0, joint]
            row, column = min(max(int(y * width), 0), width - 1), min(max(int(x * height), 0), height - 1)
            embeddings[joint] = enlarged[0, :, row, column]
    return embeddings


def draw_dift_noises(height: int, width: int, device: str) -> list[Tensor]:
    """Draw unit normal numbers for both DIFT passes: four float32 [8, 4, height/8, width/8]."""
    return [torch.randn(DIFT_ENSEMBLE, 4, height // 8, width // 8, device=device) for _ in range(4)]


def signed_pixels(image: U8, device: str) -> Tensor:
    """Convert uint8 [height, width, 3] to float32 [1, 3, height, width], -1..1."""
    return torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1


def encode_image(image_encoder: nn.Module, image: U8, device: str) -> Tensor:
    """Blur, resize and embed the reference: [1, 1, embed], float32."""
    embeds: Tensor = image_encoder(clip_pixels(signed_pixels(image, device)))
    return embeds


def clip_pixels(pixels: Tensor) -> Tensor:
    """Bring an image in -1..1 to CLIP's size and statistics: Gaussian blur, bicubic with aligned corners.

    Args:
        pixels: float32 [1, 3, height, width], -1..1.

    Returns:
        float32 [1, 3, 224, 224].
    """
    for axis in (2, 3):
        pixels = _blur(pixels, axis)
    size = (CLIP_SIZE_PX, CLIP_SIZE_PX)
    resized = functional.interpolate(pixels, size, mode="bicubic", align_corners=True)
    mean, deviation = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
        for values in (CLIP_MEAN, CLIP_STD)
    )
    return ((resized + 1) / 2 - mean) / deviation


def _blur(pixels: Tensor, axis: int) -> Tensor:
    sigma = max((pixels.shape[axis] / CLIP_SIZE_PX - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3)) // 2 * 2 + 1
    offsets = torch.arange(taps, dtype=torch.float32, device=pixels.device) - taps // 2
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)
    padding = [0, 0, taps // 2, taps // 2] if axis == 2 else [taps // 2, taps // 2, 0, 0]
    shape = (1, 1, taps, 1) if axis == 2 else (1, 1, 1, taps)
    padded = functional.pad(pixels, padding, mode="reflect")
    return functional.conv2d(padded, kernel.view(shape).expand(3, -1, -1, -1), groups=3)


def encode_poses(pose_net: nn.Module, drawings: Sequence[U8], device: str, batch: int) -> Tensor:
    """Run PoseNet over drawn poses [3, height, width], `batch` at a time: [frames, c0, height/8, width/8]."""
    parts = []
    for start in range(0, len(drawings), batch):
        pixels = torch.from_numpy(np.stack(drawings[start : start + batch])).to(device)
        parts.append(pose_net(pixels.float() / 127.5 - 1))
    return torch.cat(parts)


def decode_to_host(vae_decoder: nn.Module, latents: Tensor, chunk: int) -> list[U8]:
    """Decode in chunks, bring the frames to the host, make them uint8 there, and drop the reference.

    Args:
        vae_decoder: the exporter's "vae_decoder".
        latents: [frames, 4, height/8, width/8].
        chunk: frames that are decoded at once.

    Returns:
        uint8 [3, height, width] per frame.
    """
    chunks = [vae_decoder(latents[start : start + chunk]).cpu() for start in range(0, len(latents), chunk)]
    frames = (torch.cat(chunks) / 2 + 0.5).clamp(0, 1) * 255
    return list(frames.to(torch.uint8).numpy()[1:])

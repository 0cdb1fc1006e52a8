"""Latents of the training set: what the frozen autoencoder and image encoder make of it, each frame once.

Frames are encoded when they are first drawn, and kept in a file that is mapped into memory: training may begin at
once, goes on with what was encoded before, and shares it with its peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from .autoencoder import encode
from .data import PuppetSet
from .pictures import from_levels
from .project import ImageEncoder, InputError, clip_pixels
from .puppets import HEIGHT_PX, WIDTH_PX

F32 = NDArray[np.float32]

LATENT_SHAPE = (4, HEIGHT_PX // 8, WIDTH_PX // 8)


class LatentSet:
    """Latents of single frames of a training set.

    Args:
        puppets: training set.
        autoencoder: frozen.
        folder: of the files; belongs to this autoencoder alone.
        device: where frames are encoded.
    """

    def __init__(self, puppets: PuppetSet, autoencoder: nn.Module, folder: Path, device: torch.device) -> None:
        self._puppets = puppets
        self._autoencoder = autoencoder
        self._device = device
        folder.mkdir(parents=True, exist_ok=True)
        frames = (puppets.puppets, puppets.rows)
        self._latents = _map_file(folder / "latents.npy", (*frames, *LATENT_SHAPE), np.float32)
        self._known = _map_file(folder / "known.npy", frames, np.uint8)

    def gather(self, puppets: Sequence[int], frames: Sequence[int]) -> Tensor:
        """Modes of the posterior, not scaled: float32 [n, 4, h, w], one frame of one puppet each."""
        return torch.from_numpy(np.stack([self._row(*place) for place in zip(puppets, frames, strict=True)]))

    def _row(self, puppet: int, frame: int) -> F32:
        if not self._known[puppet, frame]:
            shard, row = self._puppets.shard(puppet)
            self._latents[puppet, frame] = self._encode(shard.images[row, frame])
            self._known[puppet, frame] = 1  # last, so that a process that is killed leaves no half row
        latents: F32 = self._latents[puppet, frame]
        return latents

    @torch.no_grad()
    def _encode(self, image: NDArray[np.generic]) -> F32:
        with torch.autocast(self._device.type, torch.bfloat16):
            latents = encode(self._autoencoder, from_levels(image[None]).to(self._device))
        encoded: F32 = latents[0].float().cpu().numpy()
        return encoded


def _map_file(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[np.generic]:
    """Map a file of that shape; a new one holds zeros, and takes no room until it is written to."""
    if not path.exists():
        part = path.with_name(f".{path.name}")
        open_memmap(part, mode="w+", dtype=dtype, shape=shape).flush()
        part.replace(path)
    mapped: NDArray[np.generic] = open_memmap(path, mode="r+")
    if mapped.shape != shape:
        raise InputError(
            f"{path} holds {list(mapped.shape)}, expected {list(shape)}: the recipe has changed; delete it"
        )
    return mapped


@torch.no_grad()
def embed_references(puppets: PuppetSet, encoder: ImageEncoder, path: Path) -> Tensor:
    """Image embeddings of all references, float32 [puppets, embed], from the file where it exists."""
    if not path.exists():
        rows = [embed_image(encoder, shard.images[row, 0]) for shard in puppets for row in range(len(shard.images))]
        part = path.with_name(f".{path.name}")
        np.save(part, torch.stack(rows).numpy())
        part.replace(path)
    return torch.from_numpy(np.load(path))[: puppets.puppets]


@torch.no_grad()
def embed_image(encoder: ImageEncoder, image: NDArray[np.uint8]) -> Tensor:
    """Image embedding of a reference uint8 [height, width, 3]: float32 [embed]."""
    embeds: Tensor = encoder(torch.from_numpy(clip_pixels(np.ascontiguousarray(image))))
    return embeds[0, 0]

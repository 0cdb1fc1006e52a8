"""Numbers of a training: widths, sizes of the training set, lengths of the stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .project import SD15, SVD, InputError, config_files

POCKET_CHANNELS = (64, 64, 64, 64)
"""64 channels at the outermost level, too: the group norms have 32 groups, and a group of one channel loses its mean,
which is what the colour of a wall is."""


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of. Steps and batches may be changed between runs; the rest belongs to the weights.

    Attributes:
        seed: of everything that is random.
        puppets: clips of the training set, a multiple of `data.SHARD_PUPPETS`.
        channels: of UNet and ControlNet per level.
        heads: attention heads per level.
        autoencoder_channels: of both autoencoders per level.
        dift_channels: of the DIFT network per level.
        autoencoder_steps, decoder_steps, posing_steps, stills_steps, clips_steps, dift_steps, guidance_steps: lengths.
        posing_batch, stills_batch, clips_batch, dift_batch, guidance_batch: frames or clips per step.
        clip_frames: frames per clip, the reference in slot 0 included.
        guidance_puppets: of the training set, how many take part in the stage "guidance": CMP takes seconds for each.
    """

    seed: int = 0
    puppets: int = 2800
    channels: tuple[int, int, int, int] = POCKET_CHANNELS
    heads: tuple[int, int, int, int] = (2, 2, 2, 2)
    autoencoder_channels: tuple[int, int, int, int] = (32, 32, 64, 64)
    dift_channels: tuple[int, int, int, int] = (32, 32, 64, 64)
    autoencoder_steps: int = 1000
    decoder_steps: int = 3000
    posing_steps: int = 950
    posing_batch: int = 48
    stills_steps: int = 12_000
    stills_batch: int = 24
    clips_steps: int = 1500
    clips_batch: int = 2
    clip_frames: int = 12
    dift_steps: int = 1500
    dift_batch: int = 32
    guidance_steps: int = 1500
    guidance_batch: int = 2
    guidance_puppets: int = 160

    def configs(self) -> dict[str, dict[str, Any]]:
        """Parsed configuration files by their path in the published layout: the toy ones with this recipe's widths."""
        files = {path: dict(body) for path, body in config_files().items()}
        widths: Mapping[str, dict[str, Any]] = {
            f"{SVD}/unet/config.json": {
                "block_out_channels": list(self.channels),
                "num_attention_heads": list(self.heads),
            },
            f"{SVD}/vae/config.json": {"block_out_channels": list(self.autoencoder_channels)},
            f"{SD15}/unet/config.json": {"block_out_channels": list(self.dift_channels)},
            f"{SD15}/vae/config.json": {"block_out_channels": list(self.autoencoder_channels)},
        }
        for path, more in widths.items():
            files[path] |= more
        return files

    def unet_config(self) -> Mapping[str, Any]:
        """The parsed `unet/config.json` of Stable Video Diffusion."""
        return self.configs()[f"{SVD}/unet/config.json"]

    def autoencoder_config(self) -> Mapping[str, Any]:
        """The parsed `vae/config.json` of Stable Video Diffusion."""
        return self.configs()[f"{SVD}/vae/config.json"]


def read_recipe(path: Path | None) -> Recipe:
    """Read changes to the default recipe from a JSON object; None changes nothing.

    Raises:
        InputError: the file cannot be read, or names what no recipe has.
    """
    if path is None:
        return Recipe()
    try:
        changes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(changes, dict):
        raise InputError(f"{path} holds a {type(changes).__name__}, expected an object of changes to the recipe")
    known = {field.name for field in fields(Recipe)}
    unknown = sorted(changes.keys() - known)
    if unknown:
        raise InputError(f"{path} names {', '.join(unknown)}; a recipe has {', '.join(sorted(known))}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return replace(Recipe(), **values)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a whole recipe as JSON."""
    path.write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")

"""The order of the training: which stage comes when, and what it takes from those before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from .autoencoder import AutoencoderStage, DecoderStage, build_autoencoder, encode, sample_frames, spread_latents
from .data import PuppetSet, draw_shards
from .denoiser import Denoiser, DenoiserStage, Judge
from .dift import DiftStage
from .guidance import Guidance, GuidanceStage
from .latents import LatentSet, embed_references
from .loop import Stage, StopSignal, Training, load_averages, read_state
from .motion_fields import DenseFlows
from .peers import Peers
from .pictures import from_levels
from .posing import PosingStage
from .project import (
    PROMPT,
    SD15,
    Checkpoint,
    ImageEncoder,
    InputError,
    build_dift,
    build_image_encoder,
    embed_prompt,
    write_toy_checkpoint,
)
from .recipe import Recipe

GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": ("data",),
    "autoencoder": ("autoencoder", "decoder"),
    "denoiser": ("posing", "stills", "clips"),
    "dift": ("dift",),
    "guidance": ("guidance",),
}
"""What the names on the command line stand for, in order."""
INITIAL_SEED = 67280421310721
"""PyTorch's own default: the first weights of a stage are those of a fresh process."""
STAGES = tuple(stage for group in GROUPS.values() for stage in group)
TRAINED_STAGES = STAGES[1:]
"""All but "data"."""


class Curriculum:
    """A training run in a folder.

    Args:
        folder: of data, states, curves and pictures.
        recipe: its numbers.
        device: where networks run.
        peers: processes that train together.
    """

    def __init__(self, folder: Path, recipe: Recipe, device: torch.device, peers: Peers | None = None) -> None:
        self.folder = folder
        self.recipe = recipe
        self._device = device
        self._peers = peers or Peers()
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, stop: StopSignal) -> bool:
        """Run a stage, or what is left of it.

        Returns:
            Whether it is finished.

        Raises:
            InputError: there is no such stage, or one that it builds on has not been trained.
        """
        if name == "data":
            draw_shards(self.folder / "data", self.recipe.puppets)
            return True
        makers: Mapping[str, Callable[[], Stage]] = {
            "autoencoder": self._autoencoder_stage,
            "decoder": self._decoder_stage,
            "posing": self._posing_stage,
            "stills": self._stills_stage,
            "clips": self._clips_stage,
            "dift": self._dift_stage,
            "guidance": self._guidance_stage,
        }
        if name not in makers:
            raise InputError(f"there is no stage {name!r}; choose from {', '.join(STAGES)}")
        if stop.requested:
            return False
        torch.manual_seed(INITIAL_SEED + self.recipe.seed)  # weights that no state replaces are drawn anew
        finished = Training(makers[name](), self.folder, self.recipe.seed, self._peers).run(stop)
        if finished and name == "autoencoder" and not self._frozen_path.exists():
            self.freeze_autoencoder()
        return finished

    @cached_property
    def puppets(self) -> PuppetSet:
        """The training set."""
        return PuppetSet(self.folder / "data", self.recipe.puppets)

    @cached_property
    def latents(self) -> LatentSet:
        """Latents of the training set."""
        return LatentSet(self.puppets, self.autoencoder(), self.folder / "latents", self._device)

    @cached_property
    def toy(self) -> Checkpoint:
        """The toy checkpoint, for all that is not trained."""
        base = self.folder / "toy"
        if not (base / "DisPose.pth").exists():
            part = self.folder / f".toy.{os.getpid()}"
            write_toy_checkpoint(part, seed=self.recipe.seed)
            with suppress(OSError):  # another process was faster
                part.rename(base)
        return Checkpoint(base)

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        """The image encoder, which is not trained: that of the toy checkpoint."""
        return build_image_encoder(self.toy)

    def references(self) -> Tensor:
        """Image embeddings of the references, [puppets, embed]."""
        return embed_references(self.puppets, self.image_encoder, self.folder / "references.npy")

    @property
    def _frozen_path(self) -> Path:
        return self.folder / "autoencoder-frozen.pt"

    def freeze_autoencoder(self) -> None:
        """Fix the latents: the averaged weights, with latents spread as the scaling factor expects. Done once.

        Raises:
            InputError: the stage "autoencoder" has not begun, or the latents are fixed already.
        """
        if self._frozen_path.exists():
            raise InputError(f"{self._frozen_path} exists: other stages may have been trained on its latents")
        model = build_autoencoder(self.recipe.autoencoder_config())
        load_averages(self.folder, "autoencoder", nn.ModuleDict({"autoencoder": model}))
        chosen = sample_frames(self.puppets, 64)
        frames = self.puppets.gather("images", [puppet for puppet, _ in chosen], [frame for _, frame in chosen])
        with torch.no_grad():
            spread_latents(model, encode(model, from_levels(frames)))
        part = self._frozen_path.with_name(f".{self._frozen_path.name}")
        torch.save(model.state_dict(), part)
        part.replace(self._frozen_path)

    def autoencoder(self) -> nn.Module:
        """The autoencoder with its latents fixed, and with its decoder as far as that is trained."""
        model = build_autoencoder(self.recipe.autoencoder_config())
        if not self._frozen_path.exists():
            raise InputError(f"{self._frozen_path} does not exist: train the stage 'autoencoder' first")
        model.load_state_dict(torch.load(self._frozen_path, map_location="cpu", weights_only=True))
        if read_state(self.folder, "decoder") is not None:
            load_averages(self.folder, "decoder", nn.ModuleDict({"decoder": model.get_submodule("decoder")}))
        return model.to(self._device).eval().requires_grad_(False)

    def denoiser(self, stage: str | None = None) -> Denoiser:
        """The denoiser as a stage left it; None gives an untrained one."""
        denoiser = Denoiser(self.recipe.unet_config())
        if stage is not None:
            load_averages(self.folder, stage, nn.ModuleDict({"denoiser": denoiser}))
        return denoiser.to(self._device)

    def _autoencoder_stage(self) -> Stage:
        return AutoencoderStage(
            self.recipe.autoencoder_config(), self.puppets, self.recipe.autoencoder_steps, self._device
        )

    def _decoder_stage(self) -> Stage:
        return DecoderStage(self.autoencoder(), self.puppets, self.recipe.decoder_steps, self._device)

    def _posing_stage(self) -> Stage:
        recipe = self.recipe
        batch = self._peers.share(recipe.posing_batch)
        return PosingStage(recipe.channels[0], self.puppets, recipe.posing_steps, batch, self._device)

    def _stills_stage(self) -> Stage:
        denoiser = self.denoiser()
        if read_state(self.folder, "stills") is None:
            posing = PosingStage(self.recipe.channels[0], self.puppets, 1, 1, self._device)
            load_averages(self.folder, "posing", posing.modules)
            denoiser.pose_net.load_state_dict(posing.modules["pose_net"].state_dict())
        return self._denoiser_stage(denoiser, self.recipe.stills_steps, self.recipe.stills_batch, frames=1)

    def _clips_stage(self) -> Stage:
        recipe = self.recipe
        denoiser = self.denoiser("stills")
        return self._denoiser_stage(denoiser, recipe.clips_steps, recipe.clips_batch, frames=recipe.clip_frames)

    def _denoiser_stage(self, denoiser: Denoiser, steps: int, batch: int, frames: int) -> Stage:
        judge = Judge(self.autoencoder(), self.image_encoder, self._device)
        return DenoiserStage(
            denoiser,
            self.puppets,
            self.latents,
            self.references(),
            judge,
            steps=steps,
            batch=self._peers.share(batch),
            frames=frames,
            device=self._device,
        )

    def _dift_stage(self) -> Stage:
        configs = self.recipe.configs()
        return DiftStage(
            configs[f"{SD15}/unet/config.json"],
            configs[f"{SD15}/scheduler/scheduler_config.json"],
            embed_prompt(self.toy, PROMPT),
            self.puppets,
            self.latents,
            steps=self.recipe.dift_steps,
            batch=self._peers.share(self.recipe.dift_batch),
            device=self._device,
        )

    def _guidance_stage(self) -> Stage:
        from .checkpoint import write_checkpoint
        from .weights import gather_weights

        recipe = self.recipe
        denoiser = self.denoiser("clips")
        guidance = Guidance(recipe.unet_config(), recipe.dift_channels[2]).to(self._device)
        guidance.start_from(denoiser.unet)
        parts = {name: part for name, part in gather_weights(self).items() if name != "guidance"}
        published = write_checkpoint(self.folder / f"before-guidance-{self._peers.rank}", parts, recipe, recipe.seed)
        return GuidanceStage(
            guidance,
            denoiser,
            build_dift(Checkpoint(published)).to(self._device),
            self.puppets,
            self.latents,
            self.references(),
            DenseFlows(self.puppets, self.toy, self.folder / "flows", self._device),
            Judge(self.autoencoder(), self.image_encoder, self._device),
            clips=recipe.guidance_puppets,
            steps=recipe.guidance_steps,
            batch=self._peers.share(recipe.guidance_batch),
            frames=recipe.clip_frames,
            device=self._device,
        )

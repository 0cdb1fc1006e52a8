"""Loads the engines of a run, and allocates what they need, before the clip's conditions are placed."""

from __future__ import annotations

from ..contract import Sizes
from ..engines.open import Engines
from ..hooks.progress import Progress
from ..settings import Settings
from ..stages.decode import fit_decoder
from ..stages.denoise.loop import Denoiser


def load_engines(engines: Engines, settings: Settings, sizes: Sizes, progress: Progress) -> Denoiser:
    """Load every network that the run needs after the poses, with its tensors.

    The largest come first. What is free afterwards is free for the conditions of the clip.

    Args:
        engines: engines of the directory; networks that are loaded already stay as they are.
        settings: settings of the run; signals that are off need no networks.
        sizes: sizes of the engine directory.
        progress: gets a tick of "load" per network.

    Returns:
        The sampling loop with its two networks.

    Raises:
        EngineError: an engine cannot be loaded.
        OutOfMemoryError: the device has no room.
    """
    controls = settings.controls
    encoders = ["image_encoder", "vae_encoder", "pose_net"]
    encoders += ["cmp_image_encoder", "cmp_flow_decoder", "motion_encoder"] if "motion" in controls else []
    encoders += ["dift", "point_encoder"] if "points" in controls else []
    denoising = ["controlnet", "unet"] if controls else ["unet"]
    total, done = len(denoising) + 1 + len(encoders), 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress.step("load", done, total)

    for name in denoising:
        engines(name)
        tick()
    denoiser = Denoiser(engines("controlnet") if controls else None, engines("unet"), engines.loader)
    denoiser.allocate()
    fit_decoder(engines("vae_decoder"), settings.decode_chunk, sizes.chunk)
    tick()
    for name in encoders:
        engines(name).allocate()
        tick()
    return denoiser

"""Writes the trained checkpoint in the published layout: `python -m pocket.checkpoint --output DIR`.

What is trained comes from the weights in `pocket/trained`, or from a training's state; all else is that of the toy
checkpoint: pose networks, CMP, the image encoder and the text encoder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .autoencoder import build_autoencoder
from .curriculum import Curriculum
from .denoiser import Denoiser
from .dift import still_autoencoder
from .guidance import Guidance, close_guidance
from .project import (
    FILES,
    SD15,
    STORED_DTYPES,
    CheckpointError,
    DisposeError,
    draw_tensors,
    measure_shapes,
    write_tensors,
    write_toy_checkpoint,
)
from .recipe import Recipe, read_recipe
from .weights import FOLDER, fill, gather_weights, load_weights, save_weights

Tensors = dict[str, Tensor]


def write_checkpoint(folder: Path, parts: Mapping[str, Tensors], recipe: Recipe, seed: int = 0) -> Path:
    """Write the whole checkpoint folder.

    Args:
        folder: created where missing; files in it are overwritten.
        parts: trained weights by part, see `weights`. Without "guidance", the ControlNet adds nothing; without "dift",
            its network is random.
        recipe: the widths that the weights were trained at.
        seed: of everything that is not trained; that of the training.

    Returns:
        The folder.

    Raises:
        InputError: weights have names that their networks lack.
        CheckpointError: a network has names that its published file lacks.
    """
    write_toy_checkpoint(folder, seed=seed)
    for path, config in recipe.configs().items():
        (folder / path).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for file, trained in publish(parts, recipe).items():
        shapes = measure_shapes(file, recipe.configs())
        unknown = trained.keys() - shapes.keys()
        if unknown:
            raise CheckpointError(f"the published file {file} has no tensors of these names:", sorted(unknown))
        tensors = draw_tensors(file, shapes, seed) | trained  # what no network reads stays random
        path, dtype = folder / FILES[file].paths[0], STORED_DTYPES[file]
        write_tensors(path, {name: tensors[name].detach().to(dtype).contiguous() for name in shapes})
    return folder


@torch.no_grad()
def publish(parts: Mapping[str, Tensors], recipe: Recipe) -> dict[str, Tensors]:
    """Trained tensors by the file of the published layout that they belong to, under their published names."""
    configs = recipe.configs()
    autoencoder = build_autoencoder(recipe.autoencoder_config())
    fill(autoencoder, parts["autoencoder"])
    still = still_autoencoder(autoencoder, configs[f"{SD15}/vae/config.json"])
    denoiser = Denoiser(recipe.unet_config())
    fill(nn.ModuleDict({"denoiser": denoiser}), parts["denoiser"])
    guidance = Guidance(recipe.unet_config(), recipe.dift_channels[2])
    if "guidance" in parts:
        fill(nn.ModuleDict({"guidance": guidance}), parts["guidance"])
    else:
        close_guidance(guidance)
    files = {
        "svd_vae": dict(autoencoder.state_dict()),
        "sd15_vae": {_as_published(name): tensor for name, tensor in still.items()},
        "mimicmotion": {
            **{f"unet.{name}": tensor for name, tensor in denoiser.unet.state_dict().items()},
            **{f"pose_net.{name}": tensor for name, tensor in denoiser.pose_net.state_dict().items()},
        },
        "dispose": guidance.published(),
    }
    if "dift" in parts:
        files["sd15_unet"] = {name.removeprefix("unet."): tensor for name, tensor in parts["dift"].items()}
    return files


def _as_published(name: str) -> str:
    """The name of an attention layer in the published autoencoder of Stable Diffusion 1.5."""
    for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f".attentions.0.{now}.", f".attentions.0.{then}.")
    return name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m pocket.checkpoint", description="Write the trained checkpoint.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--state", type=Path, metavar="DIR", help="of a training; default: the weights kept in pocket/")
    parser.add_argument("--keep", action="store_true", help="also keep the state's weights in pocket/trained")
    arguments = parser.parse_args(argv)
    try:
        if arguments.state is None:
            recipe, parts = read_recipe(FOLDER / "recipe.json"), load_weights()
        else:
            recipe = read_recipe(arguments.state / "recipe.json")
            parts = gather_weights(Curriculum(arguments.state, recipe, torch.device("cpu")))
            if arguments.keep:
                save_weights(parts, FOLDER)
                (FOLDER / "recipe.json").write_bytes((arguments.state / "recipe.json").read_bytes())
        folder = write_checkpoint(arguments.output, parts, recipe)
    except DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"pocket checkpoint: {folder}, trained: {', '.join(sorted(parts))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

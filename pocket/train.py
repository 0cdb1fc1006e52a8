"""Trains the pocket checkpoint: `python -m pocket.train --stage all --device cpu --output DIR`.

Every stage goes on from where it was stopped. SIGTERM and SIGINT let the step under way finish and save everything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .curriculum import GROUPS, STAGES, Curriculum
from .curves import plot_curves
from .loop import StopSignal
from .peers import Peers, run_in_peers
from .project import DisposeError, InputError
from .recipe import read_recipe, write_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 when done, 1 for an error, 3 when stopped by a signal."""
    parser = argparse.ArgumentParser(prog="python -m pocket.train", description="Train the pocket checkpoint.")
    choices = ("all", *dict.fromkeys((*GROUPS, *STAGES)))
    parser.add_argument("--stage", default="all", choices=choices, help="what to train (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of data, states and curves")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="JSON with changes to the default recipe")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1)")
    parser.add_argument("--peers", type=int, default=1, help="processes that share every batch (default: 1)")
    arguments = parser.parse_args(argv)
    return run_in_peers(_train, arguments.peers, arguments)


def _train(peers: Peers, arguments: argparse.Namespace) -> int:
    torch.set_num_threads(arguments.threads)
    try:
        recipe = read_recipe(arguments.recipe)
        curriculum = Curriculum(arguments.output, recipe, _device(arguments.device), peers)
        if not peers.rank:
            write_recipe(recipe, arguments.output / "recipe.json")
        finished = run_stages(curriculum, _expand(arguments.stage), peers)
    except DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if finished else 3


def run_stages(curriculum: Curriculum, stages: Sequence[str], peers: Peers) -> bool:
    """Run stages in order until one is stopped by a signal.

    Returns:
        Whether all are finished.
    """
    with StopSignal().listening() as stop:
        for stage in stages:
            finished = curriculum.run(stage, stop)
            if not peers.rank:
                plot_curves(curriculum.folder)
            if not finished:
                return False
    return True


def _expand(stage: str) -> tuple[str, ...]:
    return STAGES if stage == "all" else GROUPS.get(stage, (stage,))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{name!r} is no device: use cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch finds no CUDA GPU here: use --device cpu")
    return device


if __name__ == "__main__":
    sys.exit(main())

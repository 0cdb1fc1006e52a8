"""The card of the trained weights: what they were trained on, for how long, and how well it went."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from .curriculum import TRAINED_STAGES
from .curves import read_curve
from .loop import read_state
from .puppets import FRAMES, HEIGHT_PX, HELD_OUT_SEEDS, WIDTH_PX
from .recipe import Recipe

_LAST_STEPS = 100


def write_card(folder: Path, recipe: Recipe, target: Path) -> Path:
    """Write the card of a training as Markdown.

    Args:
        folder: of the training.
        recipe: its numbers.
        target: file to write.

    Returns:
        The file.
    """
    lines = [
        "# The pocket checkpoint",
        "",
        "Small weights in the published layout that animate drawn puppets. They are trained from scratch by `pocket.train`;",
        "no published weights or pictures went into them. Licence: Apache-2.0, as the code.",
        "",
        f"- Data: {recipe.puppets} puppets with seeds 0..{recipe.puppets - 1}, each a reference and {FRAMES} driven frames of",
        f"  {WIDTH_PX} x {HEIGHT_PX} pixels, in random unsaturated clothes and places (`pocket/puppets.py`). Puppets with seeds",
        f"  from {HELD_OUT_SEEDS.start} on are held out.",
        "- Not trained: pose networks, CMP, image encoder and text encoder, which are those of the toy checkpoint.",
        f"- Command: `python -m pocket.train --stage all --device cpu --output DIR`; seed {recipe.seed}.",
        f"- Machine: {platform.machine()}, PyTorch {torch.__version__}, one thread.",
        "",
        "| stage | steps | hours | loss at the end | held out |",
        "|---|---|---|---|---|",
        *[_row(folder, stage) for stage in TRAINED_STAGES if read_state(folder, stage) is not None],
        "",
        "Hours are wall time of training steps. Losses are means over the last "
        f"{_LAST_STEPS} steps; `curves.png` has all of them.",
        "",
        "```",
        *[f"{name} = {value}" for name, value in asdict(recipe).items()],
        "```",
    ]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def _row(folder: Path, stage: str) -> str:
    state = read_state(folder, stage)
    assert state is not None
    loss = np.mean(read_curve(folder / f"{stage}.csv")["loss"][-_LAST_STEPS:])
    measured = folder / f"{stage}-validation.csv"
    held_out = measured.read_text(encoding="utf-8").splitlines()[-1].split(",")[1:] if measured.exists() else []
    return f"| {stage} | {state['step']} | {state['trained_s'] / 3600:.1f} | {loss:.4f} | {', '.join(held_out)} |"

"""What a run would take of a graphics card, for `dispose-rt doctor DIR --plan`. No GPU is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..clip.plan import FreeMemory, estimate_clip
from ..clip.store import condition_rows
from ..contract import NETWORKS
from ..device import Gpu
from ..engines.footprint import (
    MARGIN_SHARE,
    Footprint,
    MemoryPlan,
    StagePeak,
    extrapolate,
    footprints,
    plan_memory,
    shares_scratch,
)
from ..engines.manifest import Manifest, find_directories, read_manifest
from ..engines.preflight import runs_on_gpu
from ..errors import InputError
from ..settings import CONTROLS
from .diagnosis import summarize

CARDS_GB = (8, 12, 16, 24, 32, 80)
"""Labels of common cards."""

SYSTEM_BYTES = 800_000_000
"""What the driver, a CUDA context and a desktop take of a card."""

FRAMES = 16
"""Frames of the clip that a plan makes room for, beside the reference."""

TILES = (72, 48, 32, 24, 16, 12, 8)
"""Tile lengths that are tried where another one may fit."""


@dataclass(frozen=True)
class NetworkMemory:
    """Bytes that a network takes of the device; `measured` is False where its scratch memory is an estimate."""

    name: str
    weights_bytes: int
    tensor_bytes: int
    scratch_bytes: int
    measured: bool


@dataclass(frozen=True)
class CardPlan:
    """A run with all control signals on one card.

    Attributes:
        card: "12GB", for example.
        available_bytes: what the run may take.
        fits: whether it fits.
        residency: what is closed early: "all" stays, networks needed "once" are closed, or all behind their "stages".
        decode_chunk: frames that can be decoded at once.
        peak_bytes: the highest peak of all stages, with a short clip.
        stages: peaks without the clip, and the networks that are loaded.
        frames: longest clip by the place of its conditions, as far as the device's memory decides.
        longest_tile: the longest of TILES with which engines would fit; None where none does.
    """

    card: str
    available_bytes: int
    fits: bool
    residency: str
    decode_chunk: int
    peak_bytes: int
    stages: tuple[StagePeak, ...]
    frames: dict[str, int]
    longest_tile: int | None


@dataclass(frozen=True)
class DirectoryPlan:
    """The plans of one engine directory."""

    folder: str
    summary: str
    networks: tuple[NetworkMemory, ...]
    cards: tuple[CardPlan, ...]


def parse_memory(text: str) -> int:
    """Return the bytes that a run may take on a card with this label, e.g. "12GB".

    Labels count in units of 2**30 bytes; SYSTEM_BYTES of it are not for the run.

    Raises:
        InputError: it is no size, or a card of that size has nothing left.
    """
    found = re.fullmatch(r"(\d{1,4}(?:\.\d+)?) ?(?:GB|GiB|G)?", text.strip(), re.IGNORECASE)
    available = int(float(found[1]) * (1 << 30)) - SYSTEM_BYTES if found else 0
    if available <= 0:
        raise InputError(f"--memory is {text!r}; expected the size of a graphics card, such as 12GB")
    return available


def plan_directories(root: Path, memory: str | None, gpus: tuple[Gpu, ...] = ()) -> tuple[DirectoryPlan, ...]:
    """Plan runs of every engine directory.

    Args:
        root: an engine directory, or a folder of several.
        memory: label of a card, see `parse_memory`; None for the GPUs at hand, or else for all of CARDS_GB.
        gpus: the GPUs at hand.

    Raises:
        ManifestError: a directory cannot be read.
        InputError: `memory` is no size; or the engines run on the CPU.
    """
    if memory is not None:
        cards = {memory.strip(): parse_memory(memory)}
    else:
        cards = {f"cuda:{gpu.index}": gpu.free_bytes for gpu in gpus}
        cards = cards or {f"{size}GB": parse_memory(str(size)) for size in CARDS_GB}
    return tuple(_plan_directory(read_manifest(folder), cards) for folder in find_directories(root))


def _plan_directory(manifest: Manifest, cards: dict[str, int]) -> DirectoryPlan:
    if not runs_on_gpu(manifest):
        raise InputError(
            f"the engines of {manifest.folder} run on the CPU, so there is no graphics card to plan. Pass a directory "
            "that was built with --backend tensorrt_rtx, tensorrt or aotinductor."
        )
    networks = footprints(manifest)
    rows = tuple(
        NetworkMemory(name, one.weights_bytes, one.tensor_bytes, one.scratch_bytes, one.is_measured)
        for name, one in networks.items()
    )
    plans = tuple(plan_card(manifest, label, available) for label, available in cards.items())
    return DirectoryPlan(str(manifest.folder), summarize(manifest), rows, plans)


def plan_card(manifest: Manifest, card: str, available_bytes: int) -> CardPlan:
    """Plan a run with all control signals.

    Args:
        manifest: the engine directory, for a GPU.
        card: its label.
        available_bytes: what the run may take.
    """
    plan = plan_short_clip(manifest, footprints(manifest), available_bytes)
    free = FreeMemory(plan.free_bytes, None, shared=False)
    frames = {
        place: estimate_clip(1, manifest.sizes, condition_rows(manifest, CONTROLS), place).fitting_frames(free)
        for place in ("device", "host", "recompute")
    }
    tile = next((tile for tile in TILES if _plan_tile(manifest, tile, available_bytes).fits), None)
    return CardPlan(
        card,
        available_bytes,
        plan.fits,
        plan.residency,
        plan.chunk,
        plan.peak_bytes,
        plan.stages,
        frames,
        tile,
    )


def _plan_tile(manifest: Manifest, tile: int, available_bytes: int) -> MemoryPlan:
    sizes = replace(manifest.sizes, tile=tile)
    return plan_short_clip(replace(manifest, sizes=sizes), extrapolate(manifest, sizes), available_bytes)


def plan_short_clip(
    manifest: Manifest, networks: dict[str, Footprint], available_bytes: int, chunk: int | None = None
) -> MemoryPlan:
    """Plan a run of FRAMES frames with all control signals.

    Args:
        manifest: backend, sizes and dtypes.
        networks: what each network takes.
        available_bytes: what the run may take.
        chunk: frames to decode at once; None for as many as fit.
    """
    clip = estimate_clip(FRAMES + 1, manifest.sizes, condition_rows(manifest, CONTROLS), "recompute")
    return plan_memory(
        networks,
        manifest.sizes,
        available_bytes,
        controls=CONTROLS,
        chunk=chunk,
        clip_bytes=clip.device_bytes,
        shares_scratch=shares_scratch(manifest),
    )


_RESIDENCY = {
    "all": "all engines stay loaded",
    "once": "engines that a run needs once are closed after use",
    "stages": "engines are closed behind each stage",
}


def to_lines(plan: DirectoryPlan) -> Iterator[str]:
    """Yield the plans of a directory as text for people."""
    yield f"{plan.folder}: {plan.summary}"
    yield f"  {'network':18} {'weights':>9} {'tensors':>9} {'scratch':>9}"
    for one in plan.networks:
        sizes = "".join(f" {_giga(size):>9}" for size in (one.weights_bytes, one.tensor_bytes, one.scratch_bytes))
        yield f"  {one.name:18}{sizes}{'' if one.measured else '  estimated'}"
    for card in plan.cards:
        yield ""
        yield from _card_lines(card)


def _card_lines(card: CardPlan) -> Iterator[str]:
    available = f"{card.card}, {_giga(card.available_bytes)} for the run"
    if card.fits:
        decoded = f"{card.decode_chunk} frames are decoded at once"
        yield f"{available}: fits with a peak of {_giga(card.peak_bytes)}; {_RESIDENCY[card.residency]}; {decoded}"
    else:
        margin = f"of which {MARGIN_SHARE:.0%} are left as a margin"
        yield f"{available}, {margin}: DOES NOT FIT, {_giga(card.peak_bytes)} are needed"
    for stage in card.stages:
        loaded = "every network" if len(stage.networks) == len(NETWORKS) else ", ".join(stage.networks)
        yield f"  {stage.stage:11} {_giga(stage.peak_bytes):>9}  {loaded}"
    if card.fits:
        device, recompute = card.frames["device"], card.frames["recompute"]
        yield f"  clips of {device:,} frames with their conditions on the card, of {recompute:,} without"
    if card.longest_tile is not None:
        yield f"  tiles of up to {card.longest_tile} frames would fit (option --tile-frames of `dispose-rt build`)"
    else:
        yield "  no tile length fits; a smaller --size may"


def _giga(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"

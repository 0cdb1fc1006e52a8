"""Prints which settings fit on which graphics card, by the plan of the runtime: the tables of docs/MEMORY.md.

python benchmarks/memory/cards.py           published sizes of the networks, see docs/MEASUREMENTS.md
python benchmarks/memory/cards.py ENGINES   sizes that the build of an engine directory has recorded
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dispose_rt.contract import NETWORKS, SchedulerConstants, Sizes
from dispose_rt.doctor.memory import CARDS_GB, parse_memory, plan_short_clip
from dispose_rt.engines.footprint import extrapolate
from dispose_rt.engines.manifest import FileRecord, Manifest, NetworkRecord, read_manifest

TILES = (8, 16, 32, 72)
CHUNKS = range(1, 9)
LETTERS = {"all": "A", "once": "O", "stages": "S"}

_WEIGHTS_MB = {
    "person_detector": 217.0,
    "pose_estimator": 134.0,
    "dift": 1686.5,
    "cmp_image_encoder": 97.9,
    "cmp_flow_decoder": 19.0,
    "image_encoder": 1271.1,
    "vae_encoder": 139.1,
    "pose_net": 0.9,
    "motion_encoder": 6.6,
    "point_encoder": 2.9,
    "controlnet": 1338.0,
    "unet": 2991.1,
    "vae_decoder": 148.8,
}
"""Engines of the full-size build of docs/MEASUREMENTS.md; for the pose networks, the published files."""

_FLOAT32 = ("person_detector", "pose_estimator", "cmp_image_encoder", "cmp_flow_decoder", "vae_encoder")


def published_manifest() -> Manifest:
    """The full-size build of TensorRT for RTX, 576x1024, fp16; scratch memory is estimated from it."""
    records = {
        name: NetworkRecord(
            (FileRecord(f"{name}.plan", int(_WEIGHTS_MB[name] * 1e6), "0" * 64),),
            "",
            "float32" if name in _FLOAT32 else "float16",
            backend="tensorrt_rtx",
        )
        for name in NETWORKS
    }
    return Manifest(Path(), "tensorrt_rtx", "fp16", Sizes(576, 1024), SchedulerConstants(), records)


def table(manifest: Manifest) -> Iterator[str]:
    """Yield the lines of the table of one size, as Markdown."""
    yield f"| card | tile | {' | '.join(f'chunk {chunk}' for chunk in CHUNKS)} | peak | sizes |"
    yield "|---" * (len(CHUNKS) + 4) + "|"
    for card in CARDS_GB:
        available_bytes = parse_memory(f"{card}GB")
        for tile in TILES:
            sizes = replace(manifest.sizes, tile=tile)
            networks, directory = extrapolate(manifest, sizes), replace(manifest, sizes=sizes)
            plans = [plan_short_clip(directory, networks, available_bytes, chunk) for chunk in CHUNKS]
            cells = [LETTERS[plan.residency] if plan.fits else "-" for plan in plans]
            peak_gb = plans[-1].peak_bytes / 1e9
            origin = "measured" if tile == manifest.sizes.tile else "extrapolated"
            yield f"| {card} GB | {tile} | {' | '.join(cells)} | {peak_gb:.1f} GB | {origin} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of both orientations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="?", type=Path, help="engine directory for a GPU")
    engines = parser.parse_args(argv).engines
    manifest = read_manifest(engines) if engines is not None else published_manifest()
    width, height = manifest.sizes.width, manifest.sizes.height
    for turned in ((width, height), (height, width)):
        sizes = replace(manifest.sizes, width=turned[0], height=turned[1])
        print(f"\n{turned[0]}x{turned[1]}, {manifest.backend}, {manifest.precision}\n")
        for line in table(replace(manifest, sizes=sizes)):
            print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Builds an engine directory from a folder of published checkpoints.

    python export/build_engines.py --weights WEIGHTS --output engines/576x1024 --size 576x1024

For every network: load -> trace -> simplify -> verify against PyTorch -> write; then the manifest. Finished networks
are kept when a build is interrupted, and are not built again while nothing that went into them has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

if not __package__:  # run as a script: make the relative imports below work
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "export"

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.errors import DisposeError, InputError, ManifestError
from dispose_rt.manifest import BACKENDS, FILE_NAME, Manifest, write_manifest
from dispose_rt.scheduler import SchedulerConstants

from .build_plan import NetworkPlan, build_versions, plan_network
from .checkpoints import Checkpoint
from .network_build import build_network, finished_record, reuse_sibling

PRECISIONS = ("fp32", "fp16")
DEFAULT_SIZE = "576x1024"
_ENGINE_SUFFIXES = (".onnx", ".data", ".part")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0 built, 1 failed with a message, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        with _checkpoint_folder(arguments) as weights:
            build_engines(
                weights,
                arguments.output,
                size=parse_size(arguments.size),
                tile=arguments.tile_frames,
                chunk=arguments.decode_chunk,
                precision=arguments.precision,
                only=parse_only(arguments.only),
                force=arguments.force,
            )
    except DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}. Free space, or check the folder's permissions, and run again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, metavar="DIR", help="folder of published checkpoints")
    source.add_argument("--random-weights", choices=["toy"], help="build with seeded weights of toy size, no download")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="engine directory to write")
    parser.add_argument("--size", default=DEFAULT_SIZE, metavar="WxH", help="multiples of 64 (default: %(default)s)")
    parser.add_argument(
        "--tile-frames", type=int, default=16, metavar="N", help="frames denoised at once (default: 16)"
    )
    parser.add_argument("--decode-chunk", type=int, default=8, metavar="N", help="frames decoded at once (default: 8)")
    parser.add_argument("--backend", choices=BACKENDS, default="onnxruntime", help="(default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default: %(default)s)")
    parser.add_argument("--only", metavar="NETWORK,...", help="build these networks alone: " + ", ".join(NETWORKS))
    parser.add_argument("--force", action="store_true", help="build everything again")
    return parser


def parse_size(text: str) -> tuple[int, int]:
    """Parse "WxH" into (width, height) in pixels.

    Raises:
        InputError: the text is not of that form.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InputError(f"the size {text!r} is not of the form WIDTHxHEIGHT, e.g. {DEFAULT_SIZE}")
    return int(width), int(height)


def parse_only(text: str | None) -> tuple[str, ...]:
    """Parse a comma-separated list of networks; nothing means all.

    Raises:
        InputError: a name is unknown.
    """
    if text is None:
        return tuple(NETWORKS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in NETWORKS]
    if unknown or not names:
        raise InputError(f"--only names {unknown or 'no network'}; choose from {', '.join(NETWORKS)}")
    return tuple(name for name in NETWORKS if name in names)


@contextlib.contextmanager
def _checkpoint_folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder of checkpoints: the user's, or a temporary one with random weights."""
    if arguments.weights is not None:
        yield arguments.weights
        return
    from .toy_checkpoint import write_toy_checkpoint

    with tempfile.TemporaryDirectory(prefix="dispose-rt-toy-") as folder:
        yield write_toy_checkpoint(Path(folder))


def build_engines(
    weights: Path,
    output: Path,
    *,
    size: tuple[int, int],
    tile: int = 16,
    chunk: int = 8,
    precision: str = "fp32",
    only: Sequence[str] = tuple(NETWORKS),
    force: bool = False,
) -> Manifest | None:
    """Build an engine directory for ONNX Runtime.

    Args:
        weights: folder of checkpoints in the published layout.
        output: directory to write; created where missing.
        size: (width, height) in pixels, multiples of 64.
        tile: frames that the denoiser sees at once.
        chunk: largest number of frames that the VAE decoder takes at once.
        precision: "fp32" or "fp16".
        only: networks to build; the manifest is written once all are there.
        force: build again what is there already.

    Returns:
        The manifest, or None while networks are missing.

    Raises:
        CheckpointError: weights are missing, damaged, or of other shapes.
        VerificationError: an exported network does not compute what PyTorch computes.
        InputError: a size cannot be built.
    """
    checkpoint = Checkpoint(weights)
    sizes = sizes_of(checkpoint, size, tile, chunk)
    prepare_output(output, force)
    plans = {name: plan_network(name, checkpoint, sizes, precision) for name in NETWORKS}
    stale = [name for name in only if finished_record(output, plans[name]) is None]
    if stale:
        (output / FILE_NAME).unlink(missing_ok=True)  # from here on the directory is not what that manifest says
    for name in only:
        _build_one(name in stale, list(only).index(name) + 1, len(only), plans[name], checkpoint, output, force)
    records = {name: finished_record(output, plan) for name, plan in plans.items()}
    missing = [name for name, record in records.items() if record is None]
    if missing:
        print(f"{output} still lacks {', '.join(missing)}; build them to finish it")
        return None
    manifest = Manifest(
        folder=output,
        backend="onnxruntime",
        precision=precision,
        sizes=sizes,
        scheduler=_scheduler(checkpoint),
        networks={name: record for name, record in records.items() if record is not None},
        weights=checkpoint.provenance,
        versions=build_versions(),
    )
    write_manifest(manifest)
    print(f"{output} is ready: dispose_rt.Animator({str(output)!r})")
    return manifest


def _build_one(
    stale: bool, number: int, total: int, plan: NetworkPlan, checkpoint: Checkpoint, output: Path, force: bool
) -> None:
    label = f"[{number:2}/{total}] {plan.spec.name:18}"
    if not stale:
        print(f"{label} up to date")
        return
    if sys.stdout.isatty():
        print(f"{label} ...", end="\r", flush=True)
    start = time.perf_counter()
    shared = None if force else reuse_sibling(plan, output)
    record = shared or build_network(plan, checkpoint, output)
    megabytes = sum(file.size_bytes for file in record.files) / 1e6
    worst = max(record.verification.values(), default=None)
    checked = "published file, passed through" if worst is None else f"relative error {worst:.1e}"
    checked += ", shared with a directory beside this one" if shared else ""
    print(f"{label} {time.perf_counter() - start:6.1f} s {megabytes:9.1f} MB  {checked}", flush=True)


def sizes_of(checkpoint: Checkpoint, size: tuple[int, int], tile: int, chunk: int) -> Sizes:
    """Resolve the contract's symbols from the checkpoint's configuration and the wanted size."""
    width, height = size
    channels = tuple(int(c) for c in checkpoint.configs["svd_unet"]["block_out_channels"])
    if len(channels) != 4:
        raise InputError(f"the UNet has {len(channels)} levels, expected 4")
    return Sizes(
        width=width,
        height=height,
        tile=tile,
        chunk=chunk,
        channels=channels,
        embed=int(checkpoint.configs["svd_unet"]["cross_attention_dim"]),
        dift=int(checkpoint.configs["sd15_unet"]["block_out_channels"][2]),
    )


def _scheduler(checkpoint: Checkpoint) -> SchedulerConstants:
    published = checkpoint.configs["svd_scheduler"]
    names = [field.name for field in fields(SchedulerConstants)]
    return SchedulerConstants(**{name: published[name] for name in names if name in published})


def prepare_output(output: Path, force: bool) -> None:
    """Create the directory, refusing to write into a folder that holds something else.

    Raises:
        ManifestError: the folder holds other files than an engine directory's.
    """
    output.mkdir(parents=True, exist_ok=True)
    known = {FILE_NAME, ".build"}
    foreign = [path.name for path in output.iterdir() if path.name not in known and path.suffix not in _ENGINE_SUFFIXES]
    if foreign:
        listed = ", ".join(sorted(foreign)[:5])
        raise ManifestError(f"{output} holds other files ({listed}); pass an empty or new directory as --output")
    for path in output.glob("*.part"):  # of a build that was killed
        path.unlink()
    if force:
        for path in output.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    sys.exit(main())

"""Builds engine directories from a folder of published checkpoints.

    dispose-rt build --weights WEIGHTS --output engines/576x1024 --size 576x1024 --backend tensorrt_rtx

Every network is loaded, traced, compared with PyTorch and compiled; the manifest comes last. Finished networks are kept
when a build is interrupted, and are not built again while their ingredients are unchanged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from dispose_rt.contract import NETWORKS, SchedulerConstants, Sizes
from dispose_rt.engines.backends.tensorrt_flavour import FLAVOURS, RUNTIME_CACHE_SUFFIX, load_flavour
from dispose_rt.engines.manifest import (
    BACKENDS,
    CHECKED_FILE_NAME,
    FILE_NAME,
    PRECISIONS,
    TARGET,
    Manifest,
    NetworkRecord,
    write_manifest,
)
from dispose_rt.engines.trust import SIGNATURE_FILE_NAME, carries_code, sign_directory
from dispose_rt.errors import DisposeError, InputError, ManifestError
from dispose_rt.system.memory import is_out_of_memory
from dispose_rt.system.terminal import ErrorStream, escape_controls, write_error

from .builds.network import TIMING_CACHE, build_network
from .builds.plan import (
    SUFFIXES,
    BuildTarget,
    NetworkPlan,
    backend_versions,
    build_versions,
    check_output,
    plan_network,
)
from .builds.progress import BuildProgress, BuildSummary
from .builds.records import FOLDER, WORKER, clear_leftovers, exclusive, finished_record, prune_files, reuse_sibling
from .builds.weight_check import HeaderCheck, check_weights, inspect_weights
from .builds.worker import BuildWorker
from .checkpoints import Checkpoint, Weights
from .compile.aotinductor import package_target
from .synthetic.random_weights import RandomWeights

DEFAULT_SIZE = "576x1024"
_ENGINE_SUFFIXES = (*set(SUFFIXES.values()), ".data")
_PASSING_SUFFIXES = (".part", RUNTIME_CACHE_SUFFIX)
_KNOWN_NAMES = (FILE_NAME, SIGNATURE_FILE_NAME, FOLDER, TIMING_CACHE, CHECKED_FILE_NAME)
_NOTED_BYTES = 4 << 30
_LARGEST_WORKSPACE_MIB = 1 << 24


def main(argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes the process's own.
        parser: receives the arguments; None makes one.

    Returns:
        The exit status: 0 built, 1 failed with a message, 3 out of memory, 130 interrupted.
    """
    arguments = add_arguments(parser or _make_parser()).parse_args(argv)
    summaries: list[BuildSummary] = []
    try:
        with contextlib.redirect_stdout(ErrorStream()) if arguments.json else contextlib.nullcontext():
            _build(arguments, summaries.append)
    except (DisposeError, OSError, KeyboardInterrupt) as error:
        return _report_failure(error, arguments, summaries)
    if arguments.json:
        print(json.dumps({"directories": [asdict(summary) for summary in summaries]}))
    return 0


def _report_failure(error: BaseException, arguments: argparse.Namespace, summaries: Sequence[BuildSummary]) -> int:
    """Print why a build ended early, and return the exit status."""
    kind, message = type(error).__name__, f"error: {error}"
    if isinstance(error, OSError):
        message += ". Free space, or check the folder's permissions, and run again."
    elif isinstance(error, KeyboardInterrupt):
        kind, message = "Interrupted", "interrupted; run the same command again to go on where it stopped"
    if arguments.debug and kind != "Interrupted":
        write_error("".join(traceback.format_exception(error)))
    write_error(f"{escape_controls(message)}\n")
    if arguments.json:
        failure = {"type": kind, "message": message.removeprefix("error: ")}
        print(json.dumps({"error": failure, "directories": [asdict(summary) for summary in summaries]}))
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 3 if is_out_of_memory(error) else 1


def _build(arguments: argparse.Namespace, report: Callable[[BuildSummary], None]) -> None:
    """Build the requested directories, and report each of them."""
    sizes = parse_sizes(arguments.size)
    targets, only = parse_targets(arguments.target), parse_only(arguments.only)
    check_output(arguments.output)
    with _open_weights(arguments) as weights:
        for width, height in sizes:
            output = arguments.output
            if len(sizes) > 1:
                output = output / f"{width}x{height}"
                print(escape_controls(f"{output}:"))
            build_engines(
                weights,
                output,
                size=(width, height),
                tile=arguments.tile_frames,
                chunk=arguments.decode_chunk,
                precision=arguments.precision,
                backend=arguments.backend,
                targets=targets,
                workspace_mib=arguments.workspace,
                only=only,
                force=arguments.force,
                report=report,
            )


@contextlib.contextmanager
def _open_weights(arguments: argparse.Namespace) -> Iterator[Weights]:
    """The user's checkpoints, or random weights."""
    if arguments.weights is not None:
        yield Checkpoint(arguments.weights)
    elif arguments.random_weights == "full":
        yield RandomWeights("full")
    else:  # the toy checkpoint's weights are random but for the few that carry a picture through the networks
        from .synthetic.toy_checkpoint import write_toy_checkpoint

        with tempfile.TemporaryDirectory(prefix="dispose-rt-toy-") as folder:
            yield Checkpoint(write_toy_checkpoint(Path(folder)))


def _make_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of a build to the parser, and return it."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, metavar="DIR", help="folder of published checkpoints")
    source.add_argument(
        "--random-weights", choices=["full", "toy"], help="seeded weights of the published or of toy size, no download"
    )
    add("--output", type=Path, required=True, metavar="DIR", help="engine directory to write, or its parent")
    add(
        "--size",
        default=DEFAULT_SIZE,
        metavar="WxH,...",
        help="multiples of 64; several make a directory each, OUTPUT/WxH, and share equal files (default: %(default)s)",
    )
    add("--tile-frames", type=int, default=16, metavar="N", help="frames denoised at once (default: 16)")
    add("--decode-chunk", type=int, default=8, metavar="N", help="frames decoded at once (default: 8)")
    add("--backend", choices=BACKENDS, default="onnxruntime", help="what runs the engines (default: %(default)s)")
    add("--precision", choices=PRECISIONS, default="fp32", help="(default: %(default)s)")
    add(
        "--target",
        metavar="sm_89,...",
        help="compute capabilities to build for; without it, tensorrt_rtx builds for all that it supports, the others "
        "for this machine's GPU. aotinductor also takes cpu",
    )
    add(
        "--workspace",
        type=int,
        metavar="MIB",
        help="most scratch memory that a layer may take, for tensorrt and tensorrt_rtx, in MiB (default: all that "
        "the GPU has). With another value, networks are built again",
    )
    add("--only", metavar="NETWORK,...", help="build these networks alone: " + ", ".join(NETWORKS))
    add("--force", action="store_true", help="build everything again")
    add("--json", action="store_true", help="print one JSON document: what was built, or the error")
    add("--debug", action="store_true", help="print the traceback of an error")
    return parser


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Parse "WxH,WxH" into (width, height) in pixels, without repetitions.

    Raises:
        InputError: the text is not of that form.
    """
    return tuple(dict.fromkeys(parse_size(part) for part in text.split(",")))


def parse_targets(text: str | None) -> tuple[str, ...]:
    """Parse "sm_89,sm_120" or "cpu"; None leaves the choice to the backend.

    Raises:
        InputError: the text is not of that form.
    """
    if text is None:
        return ()
    targets = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [target for target in targets if not re.fullmatch(TARGET, target)]
    if unknown:
        raise InputError(f"--target {unknown[0]!r} is no compute capability such as sm_89 (or cpu, for aotinductor)")
    return targets


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
    """Parse a comma-separated list of networks; None means all.

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


def build_engines(
    weights: Path | Weights,
    output: Path,
    *,
    size: tuple[int, int],
    tile: int = 16,
    chunk: int = 8,
    precision: str = "fp32",
    backend: str = "onnxruntime",
    targets: Sequence[str] = (),
    workspace_mib: int | None = None,
    only: Sequence[str] = tuple(NETWORKS),
    force: bool = False,
    report: Callable[[BuildSummary], None] | None = None,
) -> Manifest | None:
    """Build an engine directory.

    Args:
        weights: folder of checkpoints in the published layout, or another source of tensors.
        output: directory to write; created where missing.
        size: (width, height) in pixels, multiples of 64.
        tile: frames that are denoised at once.
        chunk: frames that are decoded at once, at most.
        precision: "fp32", "fp16" or "bf16".
        backend: one of manifest.BACKENDS.
        targets: compute capabilities such as "sm_89", or "cpu"; empty for the backend's own choice.
        workspace_mib: most scratch memory that a layer of TensorRT may take, in MiB; None leaves the limit to TensorRT.
        only: networks to build; the manifest is written once all are there.
        force: build finished networks again.
        report: called with the summary at the end.

    Returns:
        The manifest, or None while networks are missing.

    Raises:
        CheckpointError: weights are missing, damaged, or of other shapes.
        VerificationError: an exported network does not compute what PyTorch computes.
        InputError: a size or a combination of options cannot be built.
        EngineError: a compiler is not installed, or refuses a network.
        ManifestError: the directory holds something else, or another build is writing to it.
    """
    source = weights if isinstance(weights, Weights) else Checkpoint(weights)
    if isinstance(source, Checkpoint):
        check_weights(source, _widths, _scheduler)
    sizes = sizes_of(source, size, tile, chunk)
    target = choose_target(backend, precision, tuple(targets), workspace_mib)
    plans = {name: plan_network(name, source, sizes, target) for name in NETWORKS}
    if backend in FLAVOURS and precision == "fp32" and (needed := unfused_attention_bytes(sizes)) > _NOTED_BYTES:
        print(
            f"note: TensorRT does not fuse float32 attention: {needed / 1e9:.0f} GB of GPU memory for it at this size"
        )
    prepare_output(output)
    with exclusive(output):
        if force:
            clear_output(output)
        clear_leftovers(output)
        records, summary = _build_stale(plans, only, source, output, reuse=not force)
        if report is not None:
            report(summary)
        missing = [name for name, record in records.items() if record is None]
        if missing:
            print(escape_controls(f"{output} still lacks {', '.join(missing)}; build them to finish it"))
            return None
        finished = {name: record for name, record in records.items() if record is not None}
        manifest = Manifest(
            folder=output,
            backend=backend,
            precision=precision,
            sizes=sizes,
            scheduler=_scheduler(source),
            networks=finished,
            weights=source.provenance,
            versions=build_versions() | backend_versions(backend),
            targets=target.devices,
        )
        prune_files(output, {file.path for record in finished.values() for file in record.files}, _ENGINE_SUFFIXES)
        write_manifest(manifest)
        _sign(manifest)
    print(escape_controls(f"{output} is ready: dispose_rt.Animator({str(output)!r})"))
    return manifest


def _sign(manifest: Manifest) -> None:
    """Sign what can carry native code, so that this user may run it."""
    if carries_code(manifest):
        try:
            sign_directory(manifest)
        except (InputError, OSError) as error:
            command = shlex.join(["dispose-rt", "trust", str(manifest.folder)])
            print(f"note: the directory is not signed: {error}. Before it runs: {command}")


def _build_stale(
    plans: dict[str, NetworkPlan], only: Sequence[str], weights: Weights, output: Path, *, reuse: bool
) -> tuple[dict[str, NetworkRecord | None], BuildSummary]:
    """Build the networks that are not finished; return every network's record, and the summary."""
    records = {name: finished_record(output, plan) for name, plan in plans.items()}
    stale = [name for name in only if records[name] is None]
    if stale:
        (output / FILE_NAME).unlink(missing_ok=True)  # from here on the directory differs from it
    with BuildWorker(output / FOLDER / WORKER) as worker, BuildProgress(output, only, stale, worker) as progress:
        for name in only:
            if name not in stale:
                progress.kept(name)
                continue
            progress.started(name)
            shared = reuse_sibling(plans[name], output) if reuse else None
            records[name] = shared or build_network(plans[name], weights, output, worker, progress.step)
            progress.finished(name, records[name], shared=shared is not None)
    return records, progress.summarize(records)


def choose_target(
    backend: str, precision: str, devices: tuple[str, ...], workspace_mib: int | None = None
) -> BuildTarget:
    """Check a combination of options, and add the device where the backend needs it.

    Raises:
        InputError: the combination cannot be built.
        EngineError: the backend's compiler is not installed.
        DeviceError: the backend builds for this machine's GPU, and there is none.
    """
    for value, known in ((backend, BACKENDS), (precision, PRECISIONS)):
        if value not in known:
            raise InputError(f"{value!r} is unknown; choose from {', '.join(known)}")
    if workspace_mib is not None:
        if backend not in FLAVOURS:
            raise InputError(
                f"{backend} has no limit of scratch memory: leave --workspace out, or choose --backend tensorrt or "
                "tensorrt_rtx"
            )
        if not 1 <= workspace_mib <= _LARGEST_WORKSPACE_MIB:
            raise InputError(
                f"--workspace {workspace_mib} is out of range: MiB from 1 to {_LARGEST_WORKSPACE_MIB}, such as 4096"
            )
    if backend == "onnxruntime":
        if devices not in ((), ("cpu",)):
            raise InputError("ONNX Runtime runs on the CPU: leave --target out, or choose another --backend")
        if precision == "bf16":
            raise InputError("ONNX Runtime has no bf16 kernels for the CPU; choose --precision fp32 or fp16")
        devices = ()
    elif backend == "aotinductor":
        devices = (package_target(devices),)
    elif "cpu" in devices:
        raise InputError(f"{backend} runs on GPUs alone: --target takes compute capabilities such as sm_89")
    else:
        devices = load_flavour(backend).resolve_targets(devices)
    return BuildTarget(backend, precision, devices, workspace_mib)


def unfused_attention_bytes(sizes: Sizes) -> int:
    """Return the bytes of the UNet's float32 attention scores at the outermost level, for both guidance halves."""
    positions = sizes.width * sizes.height // 64
    heads = max(1, sizes.channels[0] // 64)
    return 2 * sizes.tile * heads * positions**2 * 4


def sizes_of(checkpoint: Weights, size: tuple[int, int], tile: int, chunk: int) -> Sizes:
    """Resolve the contract's symbols from the checkpoint's configuration and the requested size."""
    width, height = size
    channels, embed, dift = _widths(checkpoint)
    if len(channels) != 4:
        raise InputError(f"the UNet has {len(channels)} levels, expected 4")
    return Sizes(width=width, height=height, tile=tile, chunk=chunk, channels=channels, embed=embed, dift=dift)


def inspect_folder(folder: Path) -> tuple[HeaderCheck, ...]:
    """Compare the headers of all published files in a folder with the networks, and read all configurations.

    Takes seconds. Files may be missing.

    Args:
        folder: an existing folder.
    """
    return inspect_weights(folder, _widths, _scheduler)


def _widths(checkpoint: Weights) -> tuple[tuple[int, ...], int, int]:
    """Channels of the UNet's levels, width of the image embedding, and channels of the DIFT features."""
    svd, sd15 = checkpoint.configs["svd_unet"], checkpoint.configs["sd15_unet"]
    channels = tuple(int(width) for width in svd["block_out_channels"])
    return channels, int(svd["cross_attention_dim"]), int(sd15["block_out_channels"][2])


def _scheduler(checkpoint: Weights) -> SchedulerConstants:
    published = checkpoint.configs["svd_scheduler"]
    names = [field.name for field in fields(SchedulerConstants)]
    return SchedulerConstants(**{name: published[name] for name in names if name in published})


def prepare_output(output: Path) -> None:
    """Create the directory, refusing to write into a folder that holds something else.

    Raises:
        ManifestError: the folder holds other files than an engine directory's.
    """
    output.mkdir(parents=True, exist_ok=True)
    suffixes = (*_ENGINE_SUFFIXES, *_PASSING_SUFFIXES)
    foreign = [path.name for path in output.iterdir() if path.name not in _KNOWN_NAMES and path.suffix not in suffixes]
    if foreign:
        listed = ", ".join(sorted(foreign)[:5])
        raise ManifestError(f"{output} holds other files ({listed}); pass an empty or new directory as --output")


def clear_output(output: Path) -> None:
    """Remove everything except the lock of this build."""
    for path in output.iterdir():
        if path.name != FOLDER:
            path.unlink()
    for path in (output / FOLDER).glob("*.json"):
        path.unlink()

"""The command `dispose-rt`: animate, build, inspect, doctor."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TextIO

from . import __version__
from .contract import NETWORKS, Sizes, TensorSpec
from .errors import DisposeError, InputError
from .integrity import check_files
from .manifest import Manifest, NetworkRecord, read_manifests
from .settings import CONTROLS, PLACES, Settings

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; an error with a message of ours; unknown or malformed arguments; Ctrl-C."""

_EPILOG = """\
examples:
  dispose-rt build --weights weights --output engines/576x1024 --size 576x1024
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output out.mp4
  dispose-rt inspect engines/576x1024
  dispose-rt doctor engines/576x1024

exit codes: 0 done, 1 error (one message says what to do), 2 unknown arguments, 130 interrupted
"""
_ANIMATE_EPILOG = """\
examples:
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output out.mp4
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output draft.mp4 --steps 10 --stride 4
  dispose-rt animate --engines engines --reference photo.jpg --video dance.mp4 --output plain.mp4 --controls none

The output appears under its name when it is complete; an interrupted run leaves nothing behind.
"""
_INSPECT_EPILOG = """\
examples:
  dispose-rt inspect engines/576x1024
  dispose-rt inspect engines --verify
"""
_DOCTOR_EPILOG = """\
examples:
  dispose-rt doctor
  dispose-rt doctor engines/576x1024
  dispose-rt doctor engines/576x1024 --load-only --json

exit codes: 0 all is well, 1 something is wrong; the last line says what to type next
"""
_NO_EXPORTER = """\
the exporter is not installed here. Run the command in the source tree, or install the package with its tools:
  pip install 'dispose-rt[export]'"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        0 if it worked, 1 after an error, 2 for wrong arguments, 130 if it was interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _dispatch(arguments)
    except SystemExit as stop:  # argparse's way to end: 0 after --help, 2 after a usage message
        return stop.code if isinstance(stop.code, int) else MISUSED
    except KeyboardInterrupt:
        print("\ndispose-rt: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except DisposeError as error:
        if debug:
            traceback.print_exc()
        print(f"dispose-rt: error: {error}", file=sys.stderr)
        return FAILED


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["build"]:  # the exporter has a parser of its own
        return _build(arguments[1:])
    parser = _make_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # argparse alone would show the usage of `dispose-rt`, not of the command
        getattr(options, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.command is None:
        parser.print_help()
        return MISUSED
    code: int = options.run(options)
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without the place in the source that raised it."""
    print(f"dispose-rt: warning: {message}", file=file or sys.stderr)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dispose-rt",
        description="Animate the person of a photo with the movement of the person of a video.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dispose-rt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_animate(commands)
    commands.add_parser(
        "build", add_help=False, help="turn published checkpoints into an engine directory (`build --help` for more)"
    )
    _add_inspect(commands)
    _add_doctor(commands)
    return parser


def _add_animate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "animate",
        help="make a video",
        description="Animate the person of a photo with the movement of the person of a video.",
        epilog=_ANIMATE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser, run=_animate)
    add, default = parser.add_argument, Settings()
    add("--engines", required=True, type=Path, metavar="DIR", help="engine directory, or a folder of several")
    add("--reference", required=True, metavar="IMAGE", help="photo of one person (PNG, JPEG, WebP, BMP, TIFF)")
    add("--video", required=True, metavar="VIDEO", help="video whose movement is used (mp4, mov, mkv, webm, avi, gif)")
    add("--output", required=True, type=Path, metavar="OUT.mp4", help="video to write (mp4, m4v, mov, mkv; H.264)")
    add("--steps", type=int, default=default.steps, metavar="N", help="denoising steps (default: %(default)s)")
    add(
        "--guidance-scale",
        type=float,
        default=default.guidance_scale,
        metavar="G",
        help="classifier-free guidance, 1 is off (default: %(default)s)",
    )
    add(
        "--overlap",
        type=int,
        default=default.overlap,
        metavar="N",
        help="frames that neighbouring tiles share (default: %(default)s)",
    )
    add(
        "--stride",
        type=int,
        default=default.stride,
        metavar="N",
        help="use every N-th frame of a 24 to 47 fps video; faster ones are thinned to match (default: %(default)s)",
    )
    add("--seed", type=int, default=default.seed, metavar="N", help="seed of the noise (default: %(default)s)")
    add("--fps", type=float, metavar="FPS", help="frame rate of the output (default: keep the video's speed)")
    add(
        "--controls",
        type=_parse_controls,
        default=CONTROLS,
        metavar="LIST",
        help="guidance signals: motion,points or one of them, or none (default: motion,points)",
    )
    add(
        "--noise-aug-strength",
        type=float,
        default=default.noise_aug_strength,
        metavar="S",
        help="noise added to the reference, 0 to 1 (default: %(default)s)",
    )
    add(
        "--motion-bucket-id",
        type=int,
        default=default.motion_bucket_id,
        metavar="N",
        help="amount of motion that the video model is told (default: %(default)s)",
    )
    add("--decode-chunk", type=int, metavar="N", help="frames that the VAE decodes at once (default: as built)")
    add(
        "--conditions-memory",
        default=default.conditions_memory,
        choices=PLACES,
        help="where the conditions of a clip's frames wait; no result depends on it (default: %(default)s)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")
    add("--debug", action="store_true", help="print the Python traceback of an error")


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect",
        help="print what an engine directory holds",
        description="Print networks, shapes, precision and sizes of an engine directory, or of each one in a folder.",
        epilog=_INSPECT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser, run=_inspect)
    parser.add_argument("directory", type=Path, metavar="DIR", help="engine directory, or a folder of several")
    parser.add_argument("--verify", action="store_true", help="compare every file with its recorded hash")
    parser.add_argument("--debug", action="store_true", help="print the Python traceback of an error")


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="try out this machine and an engine directory",
        description="Print what this machine has. With a directory: hash its files, load every network, run it once.",
        epilog=_DOCTOR_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser, run=_doctor)
    add = parser.add_argument
    add("directory", nargs="?", type=Path, metavar="DIR", help="engine directory, or a folder of several")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--load-only", action="store_true", help="do not run the networks, which takes long on a CPU")
    add("--json", action="store_true", help="print JSON")
    add("--debug", action="store_true", help="print the Python traceback of an error")


def _parse_controls(text: str) -> tuple[str, ...]:
    if text.strip() == "none":
        return ()
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in CONTROLS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown control {unknown[0]!r}; choose from {', '.join(CONTROLS)}, or none")
    return names


def _animate(options: argparse.Namespace) -> int:
    """Check all that can be checked in a moment, then load the engines."""
    from . import Animator
    from .media import check_output_path, open_video, read_image

    settings = {field.name: getattr(options, field.name) for field in fields(Settings)}
    Settings(**settings)  # checks them
    output = check_output_path(options.output)
    reference = read_image(options.reference)
    open_video(options.video)
    _protect_inputs(output, options)
    with Animator(options.engines, device=options.device) as animator:
        animation = animator.run(reference, options.video, output=output, progress=not options.quiet, **settings)
    if not options.quiet:
        frames, height, width = animation.frames.shape[:3]
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in animation.timings.items())
        total = sum(animation.timings.values())
        print(f"{output}: {frames} frames of {width}x{height}, {animation.fps:g} fps, in {total:.1f} s ({stages})")
    return OK


def _protect_inputs(output: Path, options: argparse.Namespace) -> None:
    """Refuse to replace what is being read."""
    for name in ("reference", "video"):
        source = Path(getattr(options, name))
        if output.exists() and output.samefile(source):
            raise InputError(f"the output {output} is the {name} itself; give it another name")


def _build(arguments: list[str]) -> int:
    """Run the exporter, whose dependencies (PyTorch among them) the runtime does without."""
    try:
        exporter = _import_exporter()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "dispose_rt", "dispose_rt_export"):  # a mistake of ours, not a missing dependency
            raise
        raise InputError(
            f"building engines needs the Python package {missing!r}, which is not installed; install the exporter's "
            "packages: pip install 'dispose-rt[export]'"
        ) from error
    code: int = exporter.main(arguments)
    return code


def _import_exporter() -> ModuleType:
    """Import `build_engines` as installed, or from the source tree that this file lies in."""
    name = "dispose_rt_export"
    if importlib.util.find_spec(name) is None:
        source = Path(__file__).resolve().parent.parent / "export"
        spec = importlib.util.spec_from_file_location(
            name, source / "__init__.py", submodule_search_locations=[str(source)]
        )
        if not (source / "build_engines.py").is_file() or spec is None or spec.loader is None:
            raise InputError(_NO_EXPORTER)
        package = importlib.util.module_from_spec(spec)
        sys.modules[name] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{name}.build_engines")


def _inspect(options: argparse.Namespace) -> int:
    for manifest in read_manifests(options.directory):
        if options.verify:
            check_files(manifest)
        print("\n".join(_describe(manifest)))
        if options.verify:
            print("all files have the recorded sizes and hashes")
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine, to_json, to_lines

    diagnosis = examine(options.directory, options.device, load_only=options.load_only, progress=_show_progress)
    _show_progress("")
    print(to_json(diagnosis) if options.json else "\n".join(to_lines(diagnosis)))
    return OK if diagnosis.healthy else FAILED


def _show_progress(text: str) -> None:
    """Show what is being done in a line that the next one replaces, to people alone."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _describe(manifest: Manifest) -> Iterator[str]:
    sizes = manifest.sizes
    total = sum(_size_bytes(record) for record in manifest.networks.values())
    yield f"{manifest.folder}"
    yield f"  output     {sizes.width}x{sizes.height} pixels, tiles of {sizes.tile} frames, decoded by {sizes.chunk}"
    yield f"  engines    {manifest.backend}, {manifest.precision}, {_format_bytes(total)}"
    if manifest.targets:
        yield f"  targets    {', '.join(manifest.targets)}"
    if manifest.versions:
        yield "  built with " + ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    for name, weight in manifest.weights.items():
        yield f"  weights    {name} sha256 {str(weight.get('sha256', 'unknown'))[:16]}"
    for name, spec in NETWORKS.items():
        record = manifest.networks[name]
        other = f", {record.backend}" if record.backend != manifest.backend else ""
        yield f"  {name}: {_format_bytes(_size_bytes(record))}, {record.compute_dtype}, {record.files[0].path}{other}"
        for arrow, tensors in (("in ", spec.inputs), ("out", spec.outputs)):
            for tensor in tensors:
                yield f"    {arrow} {_format_tensor(tensor, record.compute_dtype, sizes)}"


def _format_tensor(tensor: TensorSpec, compute_dtype: str, sizes: Sizes) -> str:
    """For example "sparse_flow float32 [frames<=16, 2, 384, 384]"."""
    dims = (dim if isinstance(dim, int) else f"{dim}<={sizes.limit(dim)}" for dim in sizes.resolve(tensor.shape))
    return f"{tensor.name} {tensor.resolve_dtype(compute_dtype)} [{', '.join(str(dim) for dim in dims)}]"


def _size_bytes(record: NetworkRecord) -> int:
    return sum(file.size_bytes for file in record.files)


def _format_bytes(count: int) -> str:
    size, units = float(count), iter(("bytes", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


if __name__ == "__main__":
    sys.exit(main())

"""The table of what can be wrong with a call, and what is said about it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dispose_rt.engines.manifest import FILE_NAME
from dispose_rt.errors import DisposeError, InputError, ManifestError, NoPersonError, OutputError
from dispose_rt.puppet import draw_backdrop
from tests.engines.damaged_directory import dropped, link_copy, put_file, signed, swapped, truncated

from . import materials
from .materials import PDF, closed, cut, film, folder, loop, picture, pipe, png, put, song

NOWHERE = draw_backdrop(48, 32)
REBUILD = "dispose-rt build --weights WEIGHTS --output"
Make = Callable[[Path, Any], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        name: of the case.
        make: makes what is wrong in an empty folder, with a Workshop at hand. Returns what differs from the good call:
            reference, video, output, engines, device, settings, and further words of the command.
        error: what Python raises.
        cause, remedy: patterns of what the message names.
        code: exit status of the command.
        where: "both", or "command" or "python" alone.
        rightless: whether it is done by somebody who may not open everything.
    """

    name: str
    make: Make
    error: type[BaseException]
    cause: str
    remedy: str
    code: int = 1
    where: str = "both"
    rightless: bool = False


def reference(name: str, make: Callable[[Path], Any], cause: str, remedy: str, **options: Any) -> Case:
    options = {"error": InputError} | options
    return Case(f"reference {name}", lambda at, shop: {"reference": make(at)}, cause=cause, remedy=remedy, **options)


def video(name: str, make: Callable[[Path], Any], cause: str, remedy: str, **options: Any) -> Case:
    options = {"error": InputError} | options
    return Case(f"video {name}", lambda at, shop: {"video": make(at)}, cause=cause, remedy=remedy, **options)


def output(name: str, make: Callable[[Path], Any], cause: str, remedy: str, **options: Any) -> Case:
    options = {"error": OutputError} | options
    return Case(f"output {name}", lambda at, shop: {"output": make(at)}, cause=cause, remedy=remedy, **options)


def overwrite(name: str, make: Callable[[Path], dict[str, Any]], cause: str, remedy: str) -> Case:
    """The command protects what it reads."""
    return Case(f"output {name}", lambda at, shop: make(at), InputError, cause, remedy, where="command")


def setting(name: str, value: Any, cause: str = "", remedy: str = "", **options: Any) -> Case:
    """`cause` and `remedy` are those of a number out of range, or of another type."""
    options = {"error": InputError} | options
    return Case(
        f"{name} {value!r}"[:60],
        lambda at, shop: {"settings": {name: value}},
        cause=cause or rf"{name} is |argument --{name.replace('_', '-')}:",
        remedy=remedy or r"it must (lie in|be)|these engines decode|choose from|(int|float) value",
        **options,
    )


def wrong_type(name: str, value: Any, cause: str, remedy: str) -> Case:
    """What no command line can say."""
    return setting(name, value, cause, remedy, where="python")


def engines(name: str, damage: Callable[[Path], Any], cause: str, remedy: str = REBUILD, **options: Any) -> Case:
    """`damage` gets a copy of the good directory."""

    def make(at: Path, shop: Any) -> dict[str, Any]:
        damaged = link_copy(shop.engines, at / "engines")
        damage(damaged)
        return {"engines": damaged}

    return Case(f"engines {name}", make, ManifestError, cause, remedy, **options)


def no_engines(name: str, make: Callable[[Path], Any], cause: str, remedy: str = REBUILD) -> Case:
    return Case(f"engines {name}", lambda at, shop: {"engines": make(at)}, ManifestError, cause, remedy)


def device(name: Any, error: type[DisposeError], cause: str, remedy: str, **options: Any) -> Case:
    return Case(f"device {name!r}", lambda at, shop: {"device": name}, error, cause, remedy, **options)


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def _replace(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def _edit_by_hand(at: Path) -> None:
    put_file(at / FILE_NAME, (at / FILE_NAME).read_bytes().replace(b'"tile": 7', b'"tile": 8'))


def _close(path: Path) -> None:
    put_file(path, bytes(path.stat().st_size))
    path.chmod(0)


REFERENCES = [
    reference("missing", lambda at: at / "no.png", "no.png does not exist", "spelling"),
    reference("empty", lambda at: put(at, "a.png", b""), "is empty", "copy or download it again"),
    reference("directory", lambda at: at, "is a directory", "pass one image file"),
    reference("truncated png", lambda at: put(at, "a.png", png(NOWHERE)[:-20]), "truncated", "again"),
    reference(
        "truncated jpeg", lambda at: cut(at / "a.jpg", picture(at / "b.jpg", NOWHERE), 0.7), "truncated", "again"
    ),
    reference(
        "corrupt header",
        lambda at: put(at, "a.png", png(NOWHERE)[:12] + bytes(20) + png(NOWHERE)[32:]),
        "cannot be decoded|0 x 0 pixels",
        "pass (a PNG|one with)|copy or download it again",
    ),
    reference("text", lambda at: put(at, "a.png", b"hello\n" * 99), "cannot be decoded", "pass a PNG"),
    reference("sound", lambda at: song(at / "a.m4a"), "looks like a video", "pass a picture"),
    reference("pdf", lambda at: put(at, "a.pdf", PDF), "a PDF document, which is not read", "export it as PNG"),
    Case(
        "reference engine file",
        lambda at, shop: {"reference": shop.engines / "pose_net.onnx"},
        InputError,
        "cannot be decoded",
        "pass a PNG",
    ),
    reference(
        "a film",
        lambda at: film(at / "a.mkv", [NOWHERE] * 2),
        "cannot be decoded|looks like a video",
        "pass a (PNG|picture)",
    ),
    reference("bomb", lambda at: put(at, "a.png", materials.huge_png()), "too large|more than", "pass|scale"),
    reference(
        "one pixel",
        lambda at: picture(at / "a.png", NOWHERE[:1, :1]),
        "nobody was found in the reference",
        "shows one person",
        error=NoPersonError,
    ),
    reference(
        "one row",
        lambda at: picture(at / "a.png", NOWHERE[:1]),
        "nobody was found in the reference",
        "shows one person",
        error=NoPersonError,
    ),
    reference("pipe", lambda at: pipe(at / "a.png"), "no(t a)? regular file", "copy what it delivers"),
    reference("device", lambda at: "/dev/zero", "no(t a)? regular file", "copy"),
    reference("link to itself", lambda at: loop(at / "a.png"), "leads nowhere, or to itself", "pass the file"),
    reference("web address", lambda at: "https://example.org/a.png", "web address", "download it"),
    reference("null byte", lambda at: "a\0b.png", "null byte", "check how"),
    reference("endless name", lambda at: at / ("a" * 300 + ".png"), "name too long", "check its name"),
    reference("below a file", lambda at: put(at, "a.png", b"x") / "b.png", "does not exist", "spelling"),
    reference("empty name", lambda at: "", "empty name", "pass the file"),
    reference(
        "closed to us",
        lambda at: closed(picture(at / "a.png", NOWHERE)),
        "Permission denied",
        "permissions",
        rightless=True,
    ),
    reference(
        "nobody",
        lambda at: picture(at / "a.png", NOWHERE),
        "nobody was found in the reference",
        "shows one person",
        error=NoPersonError,
    ),
    reference("no picture at all", lambda at: 7, "type builtins.int", "pass a path", where="python"),
    reference("float array", lambda at: np.zeros((4, 4, 3)), "float64", r"image \* 255", where="python"),
    reference(
        "array of nans", lambda at: np.full((4, 4, 3), np.nan, np.float32), "float32", r"image \* 255", where="python"
    ),
    reference(
        "array without pixels", lambda at: np.zeros((0, 4, 3), np.uint8), "4 x 0 pixels", "at least one", where="python"
    ),
]

VIDEOS = [
    video("missing", lambda at: at / "no.mp4", "no.mp4 does not exist", "spelling"),
    video("empty", lambda at: put(at, "a.mp4", b""), "is empty", "copy or download"),
    video(
        "without its index",
        lambda at: cut(at / "a.mp4", film(at / "b.mp4", [NOWHERE] * 4, "libx264"), 0.8),
        "moov.*stopped early",
        "Get the whole file",
    ),
    video(
        "corrupt header",
        lambda at: put(at, "a.mkv", bytes(64) + film(at / "b.mkv", [NOWHERE]).read_bytes()[64:]),
        "cannot be opened",
        "pass an mp4",
    ),
    video("text", lambda at: put(at, "a.txt", b"hello\n" * 99), "cannot be opened", "pass an mp4"),
    video("sound", lambda at: song(at / "a.m4a"), "no video stream", "Pass an mp4"),
    video("pdf", lambda at: put(at, "a.pdf", PDF), "cannot be opened", "pass an mp4"),
    Case(
        "video engine file",
        lambda at, shop: {"video": shop.engines / "pose_net.onnx"},
        InputError,
        "cannot be opened",
        "pass an mp4",
    ),
    video("picture", lambda at: picture(at / "a.png", NOWHERE), "picture or text file", "pass an mp4"),
    video(
        "bomb",
        lambda at: materials.huge_film(at / "a.avi"),
        "20000 x 20000|no frame that can be decoded",
        "scale it down|again",
    ),
    video("no duration", lambda at: materials.headless_film(at / "a.mp4"), "no frame that can be decoded", "again"),
    video(
        "one pixel",
        lambda at: film(at / "a.mkv", [NOWHERE[:1, :1]] * 2),
        "nobody was found in any of the . driving",
        "use a video",
        error=NoPersonError,
    ),
    video(
        "one frame of nobody",
        lambda at: film(at / "a.mkv", [NOWHERE]),
        "nobody was found in any of the . driving",
        "use a video",
        error=NoPersonError,
    ),
    video(
        "nobody",
        lambda at: film(at / "a.mkv", [NOWHERE] * 3),
        "nobody was found in any of the . driving",
        "use a video",
        error=NoPersonError,
    ),
    video(
        "another size in the middle",
        lambda at: materials.growing_film(at / "a.h264"),
        "frame 2 .* is 128 x 96 pixels, frame 0 is 96 x 144",
        "one size",
    ),
    video("empty folder", lambda at: folder(at / "frames"), "holds no picture", "Pass one video file"),
    video(
        "folder without pictures", lambda at: folder(at / "frames", a_txt=b"x"), "holds a.txt", "Pass one video file"
    ),
    video(
        "folder of two sizes",
        lambda at: folder(at / "frames", a_png=png(NOWHERE), b_png=png(NOWHERE[1:])),
        "frame 1 .*b.png.* 32 x 47",
        "one size",
    ),
    video(
        "folder with a bad picture",
        lambda at: folder(at / "frames", a_png=png(NOWHERE), b_png=b"x"),
        "frame 1 .*b.png cannot be decoded",
        "pass a PNG",
    ),
    video(
        "closed folder",
        lambda at: closed(folder(at / "frames", a_png=png(NOWHERE))),
        "Permission denied",
        "permissions",
        rightless=True,
    ),
    video(
        "closed to us",
        lambda at: closed(film(at / "a.mkv", [NOWHERE])),
        "Permission denied",
        "permissions",
        rightless=True,
    ),
    video("pipe", lambda at: pipe(at / "a.mp4"), "no(t a)? regular file", "copy what"),
    video("device", lambda at: "/dev/zero", "no(t a)? regular file", "copy"),
    video("link to itself", lambda at: loop(at / "a.mp4"), "to itself", "pass the file"),
    video("web address", lambda at: "rtsp://example.org/a", "web address", "download it"),
    video("null byte", lambda at: "a\0b.mp4", "null byte", "check how"),
    video("endless name", lambda at: at / ("a" * 300 + ".mp4"), "name too long", "check its name"),
    video("no video at all", lambda at: 7, "type int", "pass a path", where="python"),
    video("bytes", lambda at: b"mp4", "type bytes", "pass a path", where="python"),
    video("no frames", lambda at: [], "has no frames", "at least one", where="python"),
    video("one picture array", lambda at: NOWHERE, r"\(48, 32, 3\)", r"image\[None\]", where="python"),
    video("a float frame", lambda at: [NOWHERE, NOWHERE / 255], "frame 1 .*float64", "convert", where="python"),
    video("frames of two sizes", lambda at: [NOWHERE, NOWHERE[1:]], "32 x 47", "one size", where="python"),
    video(
        "a missing frame",
        lambda at: [NOWHERE, at / "no.png"],
        "frame 1 .*no.png does not exist",
        "spelling",
        where="python",
    ),
]

OUTPUTS = [
    output("suffix", lambda at: at / "out.avi", "suffix is '.avi'", "name it with one of .mp4"),
    output("no suffix", lambda at: at / "out", "suffix is ''", "name it with"),
    output("no folder", lambda at: at / "no" / "out.mp4", "does not exist", "mkdir -p"),
    output(
        "below a file",
        lambda at: put(at, "a", b"x") / "out.mp4",
        "does not exist|no folder|is a file",
        "create it|choose",
    ),
    output("directory", lambda at: folder(at / "new.mp4"), "is a directory", "name a file in it"),
    output("pipe", lambda at: pipe(at / "new.mp4"), "device or pipe", "name a regular file"),
    output(
        "closed folder",
        lambda at: closed(folder(at / "closed")) / "out.mp4",
        "Permission denied",
        "choose another",
        rightless=True,
    ),
    output("where nobody may write", lambda at: "/proc/self/out.mp4", "cannot be written", "choose a folder"),
    output("null byte", lambda at: f"{at}/a\0b.mp4", "null byte", "choose another name"),
    output("endless name", lambda at: at / ("a" * 300 + ".mp4"), "name too long", "choose another name"),
    output("empty name", lambda at: "", "suffix is ''|empty", "name it|pass"),
    overwrite(
        "is the reference",
        lambda at: {"reference": put(at, "a.mp4", png(NOWHERE)), "output": at / "a.mp4"},
        "is the reference itself",
        "another name",
    ),
    overwrite(
        "is the video",
        lambda at: {"video": film(at / "a.mkv", [NOWHERE]), "output": at / "a.mkv"},
        "is the video itself",
        "another name",
    ),
    overwrite(
        "is the video by another name",
        lambda at: {"video": film(at / "a.mkv", [NOWHERE]), "output": _link(at / "b.mkv", at / "a.mkv")},
        "is the video itself",
        "another name",
    ),
    overwrite(
        "among the pictures",
        lambda at: {"video": folder(at / "frames", a_png=png(NOWHERE)), "output": at / "frames" / "o.mp4"},
        "among the pictures",
        "another folder",
    ),
]


ENGINES = [
    no_engines("missing", lambda at: at / "no", "is not a directory"),
    no_engines("empty directory", lambda at: folder(at / "e"), "holds no manifest.json"),
    no_engines("a file", lambda at: put(at, "e", b"x"), "is not a directory"),
    no_engines("null byte", lambda at: f"{at}/a\0b", "is not a directory"),
    no_engines("endless name", lambda at: at / ("a" * 300), "name too long", "name and permissions"),
    no_engines("link to itself", lambda at: loop(at / "e"), "is not a directory"),
    no_engines("web address", lambda at: "https://example.org/engines", "is not a directory"),
    engines("no manifest", lambda at: (at / FILE_NAME).unlink(), "holds no manifest.json"),
    engines("empty manifest", lambda at: put_file(at / FILE_NAME, b""), "manifest.json cannot be read"),
    engines("truncated manifest", truncated(FILE_NAME, lambda size: size // 2), "manifest.json cannot be read"),
    engines("foreign manifest", lambda at: put_file(at / FILE_NAME, b'{"version": 3}'), "not a dispose_rt manifest"),
    engines("manifest of another version", signed("revision", value=1), "built by an older version"),
    engines("manifest changed by hand", _edit_by_hand, "a value was changed"),
    engines("manifest without a network", dropped("networks", "unet"), r"networks: missing 'unet'"),
    engines("manifest is a directory", lambda at: _replace(at / FILE_NAME, Path.mkdir), "it is not a file"),
    engines("manifest is a pipe", lambda at: _replace(at / FILE_NAME, os.mkfifo), "it is not a file"),
    engines("no unet", lambda at: (at / "unet.onnx").unlink(), "unet.onnx is missing"),
    engines("truncated unet", truncated("unet.onnx", lambda size: size // 2), "unet.onnx has .* bytes, the manifest"),
    engines("empty unet", truncated("unet.onnx", lambda size: 0), "unet.onnx has 0 bytes"),
    engines("swapped networks", swapped("unet.onnx", "controlnet.onnx"), "unet.onnx has .* bytes, the manifest"),
    engines("closed unet", lambda at: _close(at / "unet.onnx"), "unet.onnx cannot be read: .*denied", rightless=True),
    engines("closed", lambda at: at.chmod(0), "denied", "name and permissions", rightless=True),
    engines("for a GPU", signed("backend", value="tensorrt_rtx"), "which version of tensorrt_rtx built it"),
    device("cuda", ManifestError, "run on the CPU, device is 'cuda'", "Pass device='auto' or 'cpu'"),
    device("cuda:99", ManifestError, "run on the CPU, device is 'cuda:99'", "Pass device='auto' or 'cpu'"),
    device("tpu", InputError, "device is 'tpu'", "expected 'auto'"),
    device("cuda:-1", InputError, "device is 'cuda:-1'", "expected 'auto'"),
    device("", InputError, "device is ''", "expected 'auto'"),
    device(0, InputError, "device is 0", "expected 'auto'", where="python"),
    Case("engines None", lambda at, shop: {"engines": None}, InputError, "is None", "pass the path", where="python"),
]

NUMBERS: dict[str, tuple[float, ...]] = {
    "steps": (0, 1001, -1),
    "guidance_scale": (0.5, 101, math.nan, math.inf),
    "overlap": (-1, 6, 99_999),
    "stride": (0, 10_001),
    "seed": (-1, 2**63),
    "fps": (0, -24, 1001, math.nan, math.inf),
    "noise_aug_strength": (-0.1, 1.5, math.nan),
    "motion_bucket_id": (-1, 1024),
    "bridge_gaps": (-1, 101),
    "decode_chunk": (0, 5, 1001),
}
INTEGERS = ("steps", "overlap", "stride", "seed", "motion_bucket_id", "bridge_gaps", "decode_chunk")
OPTIONAL = ("fps", "overlap", "decode_chunk")
CHOICE = r"choose from \['auto', 'device', 'host', 'recompute'\]"
TUPLE = r"pass a tuple such as \('motion', 'points'\)"
NAMES = r"choose from \['motion', 'points'\]"
SETTINGS = [
    *(setting(name, value) for name, values in NUMBERS.items() for value in values),
    *(setting(name, "many", code=2) for name in NUMBERS),
    *(setting(name, 1.5, code=2) for name in INTEGERS),
    *(wrong_type(name, value, f"{name} is", "it must be") for name in NUMBERS for value in (True, "1", [1])),
    *(wrong_type(name, None, f"{name} is None", "must be") for name in NUMBERS if name not in OPTIONAL),
    setting("alignment", "best", "'best'", "choose from .*robust", code=2),
    wrong_type("alignment", True, "alignment is True", r"choose from \['reference', 'robust'\]"),
    setting("conditions_memory", "gpu", "'gpu'", "choose from .*auto", code=2),
    wrong_type("conditions_memory", 3, "conditions_memory is 3", CHOICE),
    wrong_type("conditions_memory", None, "conditions_memory is None", CHOICE),
    setting("controls", ("motion", "faces"), "unknown control", "choose from .*motion", code=2),
    wrong_type("controls", "motion", "is the string 'motion'", TUPLE),
    wrong_type("controls", None, "controls is None", TUPLE),
    wrong_type("controls", (1, None), r"unknown controls \[1, None\]", NAMES),
    wrong_type("noise", 3, "noise is 3", "pass a function"),
    wrong_type("cancel", True, "cancel is True", "pass a threading.Event"),
    wrong_type("observer", 3, "observer is 3", "pass a function"),
    wrong_type("output", 3, "output is 3", "pass the path"),
]
GROUPS = {
    "references": REFERENCES,
    "videos": VIDEOS,
    "outputs": OUTPUTS,
    "engines": ENGINES,
    "settings": SETTINGS,
}

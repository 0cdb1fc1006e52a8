"""What can be wrong with the other commands' words."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engines.damaged_directory import link_copy, put_file

from .bad_use_cases import REBUILD
from .materials import put


@dataclass(frozen=True)
class Command:
    """One mistake.

    Attributes:
        name: of the case.
        words: makes what is wrong in a folder, with a Workshop at hand; answers the command's words.
        cause, remedy: patterns of what is said.
        code: exit status.
    """

    name: str
    words: Callable[[Path, Any], list[Any]]
    cause: str
    remedy: str
    code: int = 1


def command(name: str, words: Callable[[Path, Any], list[Any]], cause: str, remedy: str, code: int = 1) -> Command:
    """`words` leaves out the command, the first word of the name."""
    return Command(name, lambda at, shop: [name.split(maxsplit=1)[0], *words(at, shop)], cause, remedy, code)


def bench(name: str, cause: str, remedy: str, code: int = 1, **options: Any) -> Command:
    """Options are values, or functions of a folder."""

    def words(at: Path, shop: Any) -> list[Any]:
        found: list[Any] = ["bench", shop.engines]
        for option, value in options.items():
            found += [f"--{option}", value(at) if callable(value) else value]
        return found

    return Command(f"bench {name}", words, cause, remedy, code)


def _damaged(at: Path, shop: Any) -> Path:
    damaged = link_copy(shop.engines, at / "engines")
    put_file(damaged / "unet.onnx", b"x")
    return damaged


def _taken_port(at: Path, shop: Any) -> list[Any]:
    shop.listener = socket.create_server(("127.0.0.1", 0))  # for as long as the workshop lives
    return ["--engines", shop.engines, "--port", shop.listener.getsockname()[1]]


TOY = ["--random-weights", "toy"]
COMMANDS = [
    Command("nothing", lambda at, shop: [], "usage", "dispose-rt COMMAND --help", 2),
    Command("unknown command", lambda at, shop: ["animat"], "unknown command 'animat'", "did you mean animate", 2),
    Command("option first", lambda at, shop: ["--quiet", "animate"], "", "dispose-rt", 2),
    command("animate", lambda at, shop: [], "arguments are required: --engines, --reference, --video", "usage:", 2),
    command("animate unknown progress", lambda at, shop: ["--progress", "loud"], "'loud'", "choose from .*json", 2),
    command("inspect", lambda at, shop: [], "required: DIR", "usage", 2),
    command("inspect missing", lambda at, shop: [at / "no"], "is not a directory", REBUILD),
    command("inspect a file", lambda at, shop: [put(at, "a", b"x")], "is not a directory", REBUILD),
    command("inspect a null byte", lambda at, shop: ["a\0b"], "is not a directory", REBUILD),
    command("inspect an endless name", lambda at, shop: ["a" * 300], "name too long", "name and permissions"),
    command("inspect damaged", lambda at, shop: ["--verify", _damaged(at, shop)], "unet.onnx has 1 bytes", REBUILD),
    command("doctor missing", lambda at, shop: [at / "no"], "is not a directory", "dispose-rt build"),
    command("doctor damaged", lambda at, shop: [_damaged(at, shop)], "unet.onnx has 1 bytes", REBUILD),
    command("doctor device", lambda at, shop: ["--device", "tpu"], "device 'tpu' is not known", "pass auto"),
    command(
        "doctor another device",
        lambda at, shop: [shop.engines, "--device", "cuda:99", "--load-only"],
        "device is 'cuda:99'",
        "Pass device='auto'",
    ),
    command("bench", lambda at, shop: [], "required: ENGINES", "usage", 2),
    command("bench missing", lambda at, shop: [at / "no"], "is not a directory", REBUILD),
    bench("no runs", "--runs is 0", "at least 1", runs=0),
    bench("no frames", "--frames is 0", "at least 1", frames=0),
    bench("no steps", "steps is 0", "it must lie in", steps=0),
    bench("no stride", "stride is 0", "it must lie in", stride=0),
    bench("overlap", "overlap is 99", "it must lie in", overlap=99),
    bench("text as lengths", "'3,x' is no list", "pass for example", 2, lengths="3,x"),
    bench("no lengths", "--lengths is 0", "at least 1", lengths="0"),
    bench("device", "device is 'tpu'", "'cpu' or 'auto'", device="tpu"),
    bench("photo without a film", "--ref and --video", "go together", ref=lambda at: at / "no.png"),
    bench("missing photo", "no.png does not exist", "spelling", ref=lambda at: at / "no.png", video="no.mp4"),
    bench("json into nothing", "there is no folder", "create it", json=lambda at: at / "no" / "a.json"),
    bench("plot into nothing", "there is no folder", "create it", plot=lambda at: at / "no" / "a.png"),
    bench("plot suffix", "a.bmp", "ends in .png", plot=lambda at: at / "a.bmp"),
    bench("no earlier record", "No such file", "pass what --json FILE wrote", compare=lambda at: at / "no.json"),
    bench("foreign record", "no record of", "pass what --json", compare=lambda at: put(at, "a.json", b"{}")),
    bench("damaged record", "cannot be compared", "pass what --json", compare=lambda at: put(at, "a.json", b"x")),
    command("download", lambda at, shop: [], "required: --output", "usage", 2),
    command("download the unknown", lambda at, shop: ["--output", at / "w", "--only", "sdxl"], "'sdxl'", "choose", 2),
    command(
        "download revision",
        lambda at, shop: ["--output", at / "w", "--revision", "main"],
        "main names no",
        "write NAME",
    ),
    command("download check", lambda at, shop: ["--output", at / "w", "--check"], "has no download.json", "Run"),
    command(
        "download check a file",
        lambda at, shop: ["--output", put(at, "w", b"x"), "--check"],
        "cannot be used: .*Not a directory",
        "download` again",
    ),
    command("download both", lambda at, shop: ["--output", at, "--dry-run", "--check"], "not allowed", "usage", 2),
    command(
        "download into a file", lambda at, shop: ["--output", put(at, "w", b"x")], "is no directory", "pass a folder"
    ),
    command("page port 0", lambda at, shop: ["--engines", shop.engines, "--port", 0], "port is 0", r"1\.\.65535"),
    command("page port x", lambda at, shop: ["--engines", shop.engines, "--port", "x"], "--port", "int value: 'x'", 2),
    command("page missing engines", lambda at, shop: ["--engines", at / "no"], "is not a directory", REBUILD),
    command(
        "page device", lambda at, shop: ["--engines", shop.engines, "--device", "tpu"], "device is 'tpu'", "expected"
    ),
    command(
        "page address of another machine",
        lambda at, shop: ["--engines", shop.engines, "--host", "192.0.2.1"],
        "cannot be served at 192.0.2.1",
        "Pass an address of this machine",
    ),
    command("page taken port", _taken_port, "in use", "Take another one, for example --port"),
    command("build", lambda at, shop: [], "required: --output", "usage", 2),
    command("build size", lambda at, shop: [*TOY, "--output", at / "e", "--size", "big"], "'big'", "WIDTHxHEIGHT"),
    command(
        "build without weights",
        lambda at, shop: ["--weights", at / "no", "--output", at / "e", "--size", "64x128"],
        "is not a directory",
        "Pass the folder that holds the published weights",
    ),
    command("build backend", lambda at, shop: [*TOY, "--output", at / "e", "--backend", "tpu"], "'tpu'", "choose", 2),
]

"""Ways to damage a copy of an engine directory, for the tests of what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dispose_rt.engines.manifest import FILE_NAME, record_file
from dispose_rt.system.json_reader import checksum_of

Damage = Callable[[Path], None]
"""Damages one engine directory in place."""


def link_copy(source: Path, target: Path) -> Path:
    """Copy an engine directory by hard links; write to a copy through `put_file` alone, which breaks the link."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith("."):
            os.link(path, target / path.name)
    put_file(target / FILE_NAME, (target / FILE_NAME).read_bytes())
    return target


def put_file(path: Path, content: bytes) -> None:
    """Replace a file, or whatever has its name, by a new one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def truncated(name: str, keep: Callable[[int], int]) -> Damage:
    """Cut a file; `keep` maps its size to the number of bytes that stay."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        put_file(folder / name, content[: keep(len(content))])

    return damage


def flipped(name: str, position: float, bit: int) -> Damage:
    """Flip one bit at a position from 0 (first byte) to 1 (last byte)."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[round(position * (len(content) - 1))] ^= 1 << bit
        put_file(folder / name, bytes(content))

    return damage


def filled(name: str, make: Callable[[int], bytes]) -> Damage:
    """Replace a file's content by what `make` makes of its size."""
    return lambda folder: put_file(folder / name, make((folder / name).stat().st_size))


def removed(name: str) -> Damage:
    """Delete a file."""
    return lambda folder: (folder / name).unlink()


def swapped(one: str, other: str) -> Damage:
    """Exchange two files."""

    def damage(folder: Path) -> None:
        (folder / one).rename(folder / "aside")
        (folder / other).rename(folder / one)
        (folder / "aside").rename(folder / other)

    return damage


def replaced(name: str, make: Callable[[Path], Any]) -> Damage:
    """Put something that is no regular file in a file's place."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def read_body(folder: Path) -> dict[str, Any]:
    """The manifest as JSON."""
    body: dict[str, Any] = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    return body


def edited(*keys: str | int, value: Any) -> Damage:
    """Change one value of the manifest by hand: its checksum stays what it was."""

    def damage(folder: Path) -> None:
        body = read_body(folder)
        _reach(body, keys)[keys[-1]] = value
        put_file(folder / FILE_NAME, json.dumps(body).encode())

    return damage


def signed(*keys: str | int, value: Any) -> Damage:
    """Change one value of the manifest, and its checksum to fit."""

    def damage(folder: Path) -> None:
        edited(*keys, value=value)(folder)
        sign(folder)

    return damage


def dropped(*keys: str | int) -> Damage:
    """Remove one entry of the manifest, and make its checksum fit."""

    def damage(folder: Path) -> None:
        body = read_body(folder)
        del _reach(body, keys)[keys[-1]]
        put_file(folder / FILE_NAME, json.dumps(body).encode())
        sign(folder)

    return damage


def renamed(*keys: str | int, name: str) -> Damage:
    """Give one entry of the manifest another name, and make its checksum fit."""

    def damage(folder: Path) -> None:
        body = read_body(folder)
        parent = _reach(body, keys)
        parent[name] = parent.pop(keys[-1])
        put_file(folder / FILE_NAME, json.dumps(body).encode())
        sign(folder)

    return damage


def _reach(body: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys[:-1]:
        body = body[key]
    return body


def sign(folder: Path) -> None:
    """Make the manifest's checksum fit."""
    body = {key: value for key, value in read_body(folder).items() if key != "checksum"}
    body["checksum"] = checksum_of(body)
    put_file(folder / FILE_NAME, json.dumps(body).encode())


def rehash(folder: Path, network: str) -> None:
    """Make the manifest fit the files of a network as they are now."""
    body = read_body(folder)
    for file in body["networks"][network]["files"]:
        now = record_file(folder, file["path"])
        file.update(size_bytes=now.size_bytes, sha256=now.sha256)
    put_file(folder / FILE_NAME, json.dumps(body).encode())
    sign(folder)

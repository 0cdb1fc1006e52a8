"""Damaged checkpoints: safetensors, archives and pickles of torch, ONNX files, configurations and vocabularies."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from dispose_rt_export.builds.weight_check import check_weights
from dispose_rt_export.checkpoints import Checkpoint
from dispose_rt_export.synthetic.toy_checkpoint import write_toy_checkpoint
from dispose_rt_export.weight_files import read_headers, read_tensors
from safetensors.torch import save

from .area import Area, Problem
from .damage import damage_bytes, damage_json

_ENTRIES = ("/data.pkl", "/byteorder", "/version", "/data/0")
_FOLDER_SHARE = 0.02
"""Share of cases with a whole folder, which take a second each: as long as all others."""


class Weights(Area):
    """Files of tensors, and folders of files of which one is damaged."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        torch.set_num_threads(1)
        self.corpus = _make_corpus()
        self._checkpoint = write_toy_checkpoint(folder / "checkpoint")
        self._texts = sorted(path for path in self._checkpoint.rglob("*") if path.suffix in (".json", ".txt"))
        self._small = [path for path in self._checkpoint.rglob("*.onnx") if path.stat().st_size < 2**20]

    def draw(self, rng: random.Random, case: Path, number: int) -> str:
        if rng.random() < _FOLDER_SHARE:
            return self._draw_folder(rng, case)
        names = sorted(self.corpus)
        name = rng.choice(names)
        data, other = self.corpus[name], self.corpus[rng.choice(names)]
        if name.endswith(".safetensors") and rng.random() < 0.6:
            data, done = _damage_header(rng, data)
        elif "zip" in name and rng.random() < 0.8:
            data, done = _damage_entry(rng, data, other)
        else:
            data, done = damage_bytes(rng, data, other)
        suffix = ".safetensors" if name.endswith(".safetensors") != (rng.random() < 0.05) else ".pth"
        (case / f"input{suffix}").write_bytes(data)
        return f"{name}: {done}; named {suffix}"

    def _draw_folder(self, rng: random.Random, case: Path) -> str:
        shutil.copytree(self._checkpoint, case / "checkpoint", copy_function=os.link)
        target = rng.choice([*self._texts, *self._small])
        name = target.relative_to(self._checkpoint)
        data = target.read_bytes()
        if name.suffix == ".json" and rng.random() < 0.8:
            body, done = damage_json(rng, json.loads(data))
            data = json.dumps(body).encode()
        else:
            data, done = damage_bytes(rng, data, rng.choice(self._texts).read_bytes())
        (case / "checkpoint" / name).unlink()
        (case / "checkpoint" / name).write_bytes(data)
        return f"{name}: {done}"

    def run(self, case: Path) -> bool:
        if (case / "checkpoint").exists():
            checkpoint = Checkpoint(case / "checkpoint")
            check_weights(checkpoint, lambda weights: weights.configs)
            return True
        [path] = case.glob("input.*")
        headers, tensors = read_headers(path, ""), read_tensors(path, "")
        if {name: (one.shape, one.dtype) for name, one in headers.items()} != {
            name: (one.shape, one.dtype) for name, one in tensors.items()
        }:
            raise Problem("wrong result", "the header names other tensors than are read")
        for tensor in tensors.values():
            tensor.double().sum()  # reads every value
        return True


def _make_corpus() -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Any] = {
        "a.weight": torch.randn(16, 8, 3, 3, generator=generator),
        "a.bias": torch.randn(16, generator=generator).half(),
        "b": torch.randn(64, 33, generator=generator).bfloat16(),
        "steps": torch.arange(5),
        "none": torch.zeros(0, 4),
    }
    views = {**tensors, "view": tensors["b"][3:5], "turned": tensors["b"].t()}
    corpus = {"a.safetensors": save(tensors), "b.safetensors": save({"x": tensors["b"]}, {"format": "pt"})}
    for name, content in {"plain": tensors, "views": views, "nested": {"state_dict": tensors, "step": 1}}.items():
        for kind, new in (("zip", True), ("pickle", False)):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=new)
            corpus[f"{name}-{kind}.pth"] = file.getvalue()
    corpus["packed-zip.pth"] = _pack(_unpack(corpus["views-zip.pth"]), zipfile.ZIP_DEFLATED)
    return corpus


def _damage_header(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Damage the JSON of a safetensors file, and state its length rightly."""
    length = int.from_bytes(data[:8], "little")
    header, done = damage_json(rng, json.loads(data[8 : 8 + length]))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :], done


def _damage_entry(rng: random.Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    """Damage one entry of an archive, whose checksum then fits; or the archive's own records."""
    entries = _unpack(data)
    name = rng.choice([one for one in entries if one.endswith(_ENTRIES)] * 3 + list(entries))
    entries[name], done = damage_bytes(rng, entries[name], other)
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    return _pack(entries, method), f"entry {name}: {done}"


def _unpack(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _pack(entries: Mapping[str, bytes], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()

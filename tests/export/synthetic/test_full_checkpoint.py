"""The checkpoint for rehearsals: every published file, written tensor by tensor, and whole or absent."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from dispose_rt_export.builds.weight_check import check_weights
from dispose_rt_export.checkpoints import COMPONENTS, CONFIG_FILES, FILES, Checkpoint
from dispose_rt_export.synthetic import full_checkpoint
from dispose_rt_export.synthetic.configs import small_files
from dispose_rt_export.synthetic.full_checkpoint import write_full_checkpoint
from dispose_rt_export.synthetic.random_weights import RandomWeights, draw_tensor
from dispose_rt_export.synthetic.shapes import STORED_DTYPES
from dispose_rt_export.synthetic.toy_tokenizer import read_vocabulary
from safetensors import safe_open

from dispose_rt.contract import NETWORKS
from dispose_rt.errors import OutputError
from tests.every import every_item


def write_and_check(folder: Path) -> Checkpoint:
    """A folder at toy scale, with progress from nothing to everything."""
    ticks: list[tuple[str, int, int]] = []
    write_full_checkpoint(folder, scale="toy", progress=lambda *tick: ticks.append(tick))
    assert [done for _, done, _ in ticks] == sorted(done for _, done, _ in ticks)
    assert ticks[-1][1] == ticks[-1][2]
    assert {path for path, _, _ in ticks} == {FILES[name].paths[0] for name in (*STORED_DTYPES, *POSE_NETWORKS)}
    checkpoint = Checkpoint(folder)
    for name, file in (FILES | CONFIG_FILES).items():
        assert (folder / file.paths[0]).is_file(), name
    return checkpoint


POSE_NETWORKS = ("person_detector", "pose_estimator")


def test_files_for_a_rehearsal_are_read_as_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint, drawn = write_and_check(tmp_path / "weights"), RandomWeights("toy")
    check_weights(checkpoint)
    assert checkpoint.configs == drawn.configs
    with every_item() as every:
        for component, part in COMPONENTS.items():
            with every(component):
                tensors, wanted = checkpoint.tensors(component), drawn.tensors(component)
                assert tensors.keys() == wanted.keys()
                for name, tensor in tensors.items():
                    assert tensor.dtype == wanted[name].dtype, name
                    assert torch.equal(tensor, wanted[name]), name
                path = checkpoint.path(part.file)
                if path.suffix == ".safetensors":
                    with safe_open(path, "pt") as file:
                        assert file.metadata() == {"format": "pt"}
                else:
                    with zipfile.ZipFile(path) as archive:
                        entries = archive.infolist()
                        assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
                    for entry in entries:
                        with path.open("rb") as raw:
                            raw.seek(entry.header_offset + 26)
                            lengths = np.frombuffer(raw.read(4), np.uint16).sum()
                        assert (entry.header_offset + 30 + lengths) % 64 == 0, entry.filename
        for network in POSE_NETWORKS:
            with every(network):
                spec = NETWORKS[network]
                session = onnxruntime.InferenceSession(checkpoint.path(network), providers=["CPUExecutionProvider"])
                [given] = spec.inputs
                values = np.random.default_rng(0).uniform(0, 255, given.shape).astype(np.float32)
                outputs = session.run([one.name for one in spec.outputs], {given.name: values})
                assert [output.shape for output in outputs] == [one.shape for one in spec.outputs]
                assert all(np.isfinite(output).all() and output.std() > 0.1 for output in outputs)
        with every("tokenizer of published size"):
            words = read_vocabulary(48894 - 9)
            assert (len(words), words["<|endoftext|>"]) == (49408, 49407)
            folder = checkpoint.path("sd15_vocabulary").parent
            short = checkpoint.tokenize("photo of a human")
            for path, text in small_files("full").items():
                if "tokenizer/" in path:
                    (folder / Path(path).name).write_text(text)
            tokens = checkpoint.tokenize("photo of a human")[0]
            assert tokens[0] == 49406
            assert tokens[5:].eq(49407).all()
            assert tokens[1:5].equal(short[0, 1:5])


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = tmp_path / "weights"
    monkeypatch.setattr(full_checkpoint, "free_disk_bytes", lambda folder: 9 << 30)
    with pytest.raises(OutputError, match=r"takes 9\.\d+ GB of disk, and .*weights has 9\.\d+ GB free"):
        write_full_checkpoint(weights)
    assert not weights.exists()
    monkeypatch.undo()

    drawn = []

    def fill_disk(name: str, *rest: object) -> torch.Tensor:
        drawn.append(name)
        if len(drawn) == 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        return draw_tensor(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(full_checkpoint, "draw_tensor", fill_disk)
    with pytest.raises(OutputError, match="No space left on device; pass a folder with room"):
        write_full_checkpoint(weights, scale="toy")
    assert not list(weights.rglob("*.pth")) + list(weights.rglob("*.part"))

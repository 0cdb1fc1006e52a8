"""The toy checkpoint has the published layout, and its networks do what the demo relies on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from dispose_rt_export.builds.plan import RECIPES
from dispose_rt_export.checkpoints import FILES, Checkpoint
from dispose_rt_export.synthetic.toy_checkpoint import write_toy_checkpoint
from dispose_rt_export.synthetic.toy_weights import draw_tensors

from dispose_rt.contract import NETWORKS, SchedulerConstants
from dispose_rt.puppet import Stance, draw_puppet, place_joints
from dispose_rt.stages.denoise.scheduler import karras_schedule
from tests.golden_data import GOLDEN

#: name in tests/golden/spec -> name in checkpoints.FILES
SPECS = {
    **{
        name: name
        for name in ("mimicmotion", "dispose", "cmp", "svd_vae", "sd15_unet", "sd15_vae", "sd15_text_encoder")
    },
    "svd_image_encoder": "image_encoder",
}
DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}


@pytest.fixture(scope="module")
def checkpoint(toy_checkpoint: Path) -> Checkpoint:
    return Checkpoint(toy_checkpoint)


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = torch.load(path, weights_only=True)
    return content.get("state_dict", content)


@pytest.mark.parametrize("spec", SPECS)
def test_tensors_are_the_published_ones(checkpoint, spec):
    published = json.loads((GOLDEN / "spec" / f"{spec}.json").read_text())
    path = checkpoint.path(SPECS[spec])
    assert path.relative_to(checkpoint.folder).as_posix() == published["path"]
    tensors = read(path)
    found = {name: (list(tensor.shape), DTYPES[tensor.dtype]) for name, tensor in tensors.items()}
    assert found == {name: (shape, dtype) for name, shape, dtype in published["tensors"]}
    for name, tensor in tensors.items():
        assert tensor.isfinite().all(), name


def test_small_files_are_the_published_ones(checkpoint):
    published = json.loads((GOLDEN / "spec" / "configs.json").read_text())
    for relative, text in published.items():
        written = (checkpoint.folder / relative).read_text(encoding="utf-8")
        if relative.endswith(".json"):
            assert json.loads(written) == json.loads(text), relative
        else:
            assert written == text, relative


def test_folder_holds_nothing_else(checkpoint):
    specs = [json.loads((GOLDEN / "spec" / f"{spec}.json").read_text())["path"] for spec in SPECS]
    configs = json.loads((GOLDEN / "spec" / "configs.json").read_text())
    pose = [FILES[name].paths[0] for name in ("person_detector", "pose_estimator")]
    found = {path.relative_to(checkpoint.folder).as_posix() for path in checkpoint.folder.rglob("*") if path.is_file()}
    assert found == {*specs, *configs, *pose}


def test_prompt_is_four_words(checkpoint):
    start, *words, end = checkpoint.tokenize("photo of a human")[0, :6].tolist()
    vocabulary = json.loads(checkpoint.path("sd15_vocabulary").read_text(encoding="utf-8"))
    names = {number: word for word, number in vocabulary.items()}
    assert [names[word] for word in words] == ["photo</w>", "of</w>", "a</w>", "human</w>"]
    assert (names[start], names[end]) == ("<|startoftext|>", "<|endoftext|>")


@pytest.mark.parametrize("network", ["person_detector", "pose_estimator"])
def test_pose_networks_have_the_published_names_and_shapes(checkpoint, network):
    session = onnxruntime.InferenceSession(checkpoint.path(network), providers=["CPUExecutionProvider"])
    for found, wanted in (
        (session.get_inputs(), NETWORKS[network].inputs),
        (session.get_outputs(), NETWORKS[network].outputs),
    ):
        assert [(one.name, one.shape, one.type) for one in found] == [
            (one.name, list(one.shape), "tensor(float)") for one in wanted
        ]


def test_seed_decides_every_tensor():
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (4, 3)}
    first, again, other = (draw_tensors("dispose", shapes, seed) for seed in (1, 1, 2))
    for name in shapes:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    assert not torch.equal(first["a.weight"], first["b.weight"])


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, checkpoint):
    again = Checkpoint(write_toy_checkpoint(tmp_path / "again"))
    assert again.provenance == checkpoint.provenance


def build(checkpoint: Checkpoint, network: str) -> torch.nn.Module:
    return RECIPES[network].build(checkpoint).eval().requires_grad_(False)


def signed(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)) / 127.5 - 1


def correlation(a: torch.Tensor | np.ndarray, b: torch.Tensor | np.ndarray) -> float:
    return float(np.corrcoef(np.asarray(a).ravel(), np.asarray(b).ravel())[0, 1])


def picture(height: int, width: int) -> np.ndarray:
    return draw_puppet(place_joints(Stance(), width / height), height, width)


def test_autoencoder_blurs_and_keeps_the_picture(checkpoint):
    image = picture(192, 128)
    latents = build(checkpoint, "vae_encoder")(signed(image))
    averages = cv2.resize(image, (16, 24), interpolation=cv2.INTER_AREA).astype(np.float32) / 127.5 - 1
    for colour in range(3):
        assert correlation(latents[0, colour], averages[..., colour]) > 0.999
    decoded = build(checkpoint, "vae_decoder")(latents.repeat(3, 1, 1, 1) * 0.18215)
    blurred = cv2.resize(averages, (128, 192), interpolation=cv2.INTER_LINEAR)
    assert decoded.abs().max() < 2
    for frame in decoded:
        for colour in range(3):
            assert correlation(frame[colour], blurred[..., colour]) > 0.9


def test_black_pose_image_adds_nothing_to_the_latents(checkpoint):
    pose_net = build(checkpoint, "pose_net")
    black = torch.full((1, 3, 64, 64), -1.0)
    assert pose_net(black).abs().max() == 0
    drawn = black.clone()
    drawn[:, 0, 16:48, 24:32] = 1  # a red bar
    latents = pose_net(drawn)[0]
    assert latents[4, 2:6, 3].min() > 0.5
    elsewhere = latents[4:7].clone()
    elsewhere[0, 2:6, 3] = 0
    assert elsewhere.abs().max() == 0


def test_no_motion_has_no_features(checkpoint):
    encoder = build(checkpoint, "motion_encoder")
    still = torch.zeros(1, 2, 64, 64)
    assert encoder(still, still).abs().max() == 0
    moving = torch.zeros(1, 2, 64, 64)
    moving[:, 0, 20:40, 20:40] = 5.0
    assert encoder(moving, still).abs().max() > 0.1
    assert encoder(still, moving * 0.02).abs().max() > 0.1


def test_hints_spread_around_where_they_are(checkpoint):
    encoder, decoder = build(checkpoint, "cmp_image_encoder"), build(checkpoint, "cmp_flow_decoder")
    features = encoder(signed(cv2.resize(picture(192, 128), (384, 384), interpolation=cv2.INTER_NEAREST)))
    hints, mask = torch.zeros(2, 1, 2, 384, 384)
    assert decoder(*features, hints, mask).abs().max() < 0.5  # pixels
    directions = {(96, 96): torch.tensor([20.0, -10.0]), (288, 288): torch.tensor([-8.0, 30.0])}
    for (row, column), direction in directions.items():
        hints[0, :, row, column] = direction
        mask[0, :, row, column] = 1
    [flow] = decoder(*features, hints, mask)
    for (row, column), direction in directions.items():
        found = flow[:, row, column]
        assert torch.cosine_similarity(found, direction, dim=0) > 0.98
        # a cell is interpolated between its centre and its neighbours: how much is left depends on the place
        assert 0.4 < found.norm() / direction.norm() < 1.6
    assert flow[:, 96:128, 256:288].abs().max() < 0.5


def sample(
    unet: torch.nn.Module, image_latents: torch.Tensor, seed: int, residuals: list[torch.Tensor]
) -> torch.Tensor:
    """Eight Euler steps at guidance 2 without pose, as dispose_rt.stages.denoise.scheduler describes them."""
    schedule = karras_schedule(8, SchedulerConstants())
    latents = torch.randn(2, 4, *image_latents.shape[2:], generator=torch.Generator().manual_seed(seed))
    latents = latents * float(schedule.init_noise_sigma)
    embeds, ids = torch.zeros(1, 1, 48), torch.tensor([[6.0, 127.0, 0.0]])
    still = torch.zeros(2, 32, *image_latents.shape[2:])
    for step in range(schedule.steps):
        sigma, following = float(schedule.sigmas[step]), float(schedule.sigmas[step + 1])
        scaled = latents / math.sqrt(sigma**2 + 1)
        time = torch.tensor([float(schedule.timesteps[step])])
        without, with_image = unet(scaled, image_latents, time, embeds, ids, still, *residuals)
        predicted = without + 2 * (with_image - without)
        clean = scaled / math.sqrt(sigma**2 + 1) - predicted * sigma / math.sqrt(sigma**2 + 1)
        latents = latents + (latents - clean) / sigma * (following - sigma)
    return latents


def test_sampling_ends_at_the_reference(checkpoint):
    image_latents = build(checkpoint, "vae_encoder")(signed(picture(128, 128)))
    unet = build(checkpoint, "unet")
    results = [sample(unet, image_latents, seed, [torch.zeros(1)] * 13) for seed in (0, 1)]
    for result in results:
        assert result.isfinite().all()
        assert 0.3 < result.std() < 5
        for frame in result:
            for latent in range(3):
                assert correlation(frame[latent], image_latents[0, latent]) > 0.7
    assert not torch.equal(*results)

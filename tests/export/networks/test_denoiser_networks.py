"""The denoiser's networks against the reference's own numbers, block by block and through the guidance wrappers."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from dispose_rt_export.compile.trace import sample_inputs
from dispose_rt_export.networks.controlnet import ControlNet, build_controlnet
from dispose_rt_export.networks.motion_encoder import MotionEncoder, build_motion_encoder
from dispose_rt_export.networks.point_encoder import PointEncoder, build_point_encoder
from dispose_rt_export.networks.pose_net import PoseNet, build_pose_net
from dispose_rt_export.networks.spatio_temporal import (
    DenoiserConfig,
    SpatialTransformerBlock,
    TemporalTransformerBlock,
    collapsed_tensors,
)
from dispose_rt_export.networks.unet import UNet, build_unet
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dispose_rt.contract import NETWORKS, RESIDUAL_MULTIPLICITY, Sizes
from dispose_rt.engines.manifest import read_manifest
from dispose_rt.errors import CheckpointError
from tests.golden_case import GoldenCase
from tests.golden_data import GOLDEN

Arrays = Mapping[str, NDArray[np.generic]]
Golden = Callable[[str], Arrays]

TOLERANCE = 1e-5  # of the array's largest magnitude; measured: at most 1.6e-6
UNET_CONFIG = "stable-video-diffusion-img2vid-xt-1-1/unet/config.json"
MOTION = "controlnet_cond_embedding."
POINTS = "point_adapter."
CHANNELS = (32, 64, 128, 128)
TRANSFORMERS = {"controlnet": 7, "unet": 16}
ONCE = (1,) * len(RESIDUAL_MULTIPLICITY)


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.inference_mode():
        yield


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    return ((actual.float() - expected.float()).abs().max() / expected.abs().max()).item()


def strip_encoders(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What of DisPose.pth is the ControlNet itself."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith((MOTION, POINTS))}


def strip(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@cache
def load_published(file: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(file, weights_only=True)
    return tensors


@pytest.fixture(scope="module")
def config(golden_checkpoint: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((golden_checkpoint / UNET_CONFIG).read_text())
    return values


@pytest.fixture(scope="module")
def mimicmotion(golden_checkpoint: Path) -> dict[str, Tensor]:
    return load_published(golden_checkpoint / "MimicMotion_1-1.pth")


@pytest.fixture(scope="module")
def dispose(golden_checkpoint: Path) -> dict[str, Tensor]:
    return load_published(golden_checkpoint / "DisPose.pth")


@pytest.fixture(scope="module")
def unet(config: dict[str, Any], mimicmotion: dict[str, Tensor]) -> UNet:
    return build_unet(config, strip(mimicmotion, "unet."))


@pytest.fixture(scope="module")
def controlnet(config: dict[str, Any], dispose: dict[str, Tensor]) -> ControlNet:
    return build_controlnet(config, strip_encoders(dispose))


@pytest.fixture(scope="module")
def pose_net(mimicmotion: dict[str, Tensor]) -> PoseNet:
    return build_pose_net(strip(mimicmotion, "pose_net."))


@pytest.fixture(scope="module")
def motion_encoder(dispose: dict[str, Tensor]) -> MotionEncoder:
    return build_motion_encoder(strip(dispose, MOTION))


@pytest.fixture(scope="module")
def point_encoder(dispose: dict[str, Tensor]) -> PointEncoder:
    return build_point_encoder(strip(dispose, POINTS))


class Case:
    """The arrays whose names begin with one case's name, as tensors."""

    def __init__(self, arrays: Arrays, name: str) -> None:
        self._arrays = arrays
        self._name = name

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self._arrays[f"{self._name}.{key}"])


def encode_motion(encoder: MotionEncoder, dense: Tensor, trajectories: Tensor) -> Tensor:
    """Features of a whole clip from flows [frames - 1, 2, h, w]: the reference frame does not move."""
    still = torch.zeros_like(dense[:1])
    features: Tensor = encoder(torch.cat([still, dense]), torch.cat([still, trajectories]))
    return features


def place_points(
    encoder: PointEncoder, joints: Tensor, subset: Tensor, embeddings: Tensor, height: int, width: int
) -> list[Tensor]:
    """The reference's grids at four levels, built the slow way: quirk 19 of the golden data."""
    frames, columns, rows = len(joints), width // 16, height // 16
    sums = torch.zeros(frames, rows, columns, embeddings.shape[-1])
    counts = torch.zeros(frames, rows, columns, 1)
    for frame in range(frames):
        for joint in range(joints.shape[1]):
            x, y = joints[frame, joint].tolist()
            if subset[frame, joint] != -1 and x >= 0 and y >= 0:
                cell = frame, min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
                sums[cell] += embeddings[joint]
                counts[cell] += 1
    occupied = (counts > 0).float()
    mean = sums / counts.clamp(min=1)
    levels = encoder(mean.flatten(0, 2))
    grids = []
    for features, scale in zip(levels, (1, 2, 4, 4), strict=True):
        size = (rows // scale, columns // scale)
        image = (features.unflatten(0, (frames, rows, columns)) * occupied).permute(0, 3, 1, 2)
        mask = functional.interpolate(occupied.permute(0, 3, 1, 2), size=size, mode="nearest")
        grids.append(functional.interpolate(image, size=size, mode="bilinear") * mask)
    return grids


# --- networks that run once per clip --------------------------------------------------------------


def test_pose_net_equals_the_reference(pose_net: PoseNet, golden: Golden) -> None:
    case = Case(golden("nets"), "posenet")
    assert relative_error(pose_net(case["pose_u8"].float() / 127.5 - 1), case["out"]) < TOLERANCE


def test_motion_encoder_equals_the_reference_and_sees_the_first_frame_as_zero_flow(
    motion_encoder: MotionEncoder, golden: Golden
) -> None:
    case = Case(golden("nets"), "motion")
    features = encode_motion(motion_encoder, case["flow"][0], case["traj"][0])
    assert relative_error(features, case["out"]) < TOLERANCE


def test_motion_encoder_looks_at_each_frame_alone(motion_encoder: MotionEncoder, golden: Golden) -> None:
    case = Case(golden("nets"), "motion")
    alone = motion_encoder(case["flow"][0, 1:2], case["traj"][0, 1:2])
    assert relative_error(alone, case["out"][2:3]) < TOLERANCE


@pytest.mark.parametrize("name", ["p192x128", "s64", "l128x192", "dense"])
def test_point_encoder_gives_the_reference_grids(point_encoder: PointEncoder, golden: Golden, name: str) -> None:
    case = Case(golden("points"), name)
    height, width = case["hw"].tolist()
    grids = place_points(
        point_encoder, case["candidate"], case["subset"][:, 0], case["ref_point_emb"][0], height, width
    )
    for level, grid in enumerate(grids):
        expected = case[f"level{level}"][0]
        assert (grid - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max().item())
        assert torch.equal(grid != 0, expected != 0)


# --- ControlNet and UNet on the reference's own batches -------------------------------------------


def control(controlnet: ControlNet, motion: MotionEncoder, points: PointEncoder, case: Case) -> tuple[Tensor, ...]:
    flows = [case[name][0].repeat_interleave(16, -1).repeat_interleave(16, -2) for name in ("flow_one", "traj_one")]
    features = encode_motion(motion, *flows)
    height, width = flows[0].shape[-2:]
    grids = place_points(points, case["candidate"], case["subset"][:, 0], case["ref_point_emb"][0], height, width)
    return controlnet.control(
        case["sample"].flatten(0, 1),
        controlnet.embed_time(case["timestep"][None], case["added_time_ids"][:1]),
        case["encoder_hidden_states"][:, 0],
        features.repeat(2, 1, 1, 1),
        [grid.repeat(2, 1, 1, 1) for grid in grids],
    )


def reference_residuals(case: Case) -> list[Tensor]:
    return [*(case[f"down{index}"] for index in range(12)), case["mid"]]


def test_controlnet_residuals_equal_the_reference(
    config: dict[str, Any],
    dispose: dict[str, Tensor],
    motion_encoder: MotionEncoder,
    point_encoder: PointEncoder,
    golden: Golden,
) -> None:
    case = Case(golden("nets"), "ctrl")
    plain = build_controlnet(config, strip_encoders(dispose), residual_factors=ONCE)
    residuals = control(plain, motion_encoder, point_encoder, case)
    for residual, expected in zip(residuals, reference_residuals(case), strict=True):
        assert relative_error(residual, expected) < TOLERANCE


def test_controlnet_folds_in_how_often_the_reference_adds_each_residual(
    controlnet: ControlNet, motion_encoder: MotionEncoder, point_encoder: PointEncoder, golden: Golden
) -> None:
    case = Case(golden("nets"), "ctrl")
    counted = [*golden("nets")["unet.residual_multiplicity"].tolist(), 1]
    residuals = control(controlnet, motion_encoder, point_encoder, case)
    for residual, expected, times in zip(residuals, reference_residuals(case), counted, strict=True):
        assert relative_error(residual, expected * times) < TOLERANCE


@pytest.mark.parametrize("output", ["out", "out_no_residuals"])
def test_unet_equals_the_reference(unet: UNet, golden: Golden, output: str) -> None:
    shared, case = Case(golden("nets"), "ctrl"), Case(golden("nets"), "unet")
    factors = RESIDUAL_MULTIPLICITY if output == "out" else (0,) * len(RESIDUAL_MULTIPLICITY)
    predicted = unet.denoise(
        shared["sample"].flatten(0, 1),
        unet.embed_time(shared["timestep"][None], shared["added_time_ids"][:1]),
        shared["encoder_hidden_states"][:, 0],
        case["pose_latents"],
        [residual * factor for residual, factor in zip(reference_residuals(shared), factors, strict=True)],
    )
    assert relative_error(predicted, case[output].flatten(0, 1)) < TOLERANCE


def test_the_interleaved_context_has_the_effect_that_was_measured(
    unet: UNet, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row r of the batch-major rows reads context r mod 2; laid out straight, the prediction moves as stored."""

    def straight(block: TemporalTransformerBlock, hidden: Tensor, context: Tensor) -> Tensor:
        batch, _, positions, _ = hidden.shape
        rows = hidden.transpose(1, 2).flatten(0, 1)
        rows = rows + block.ff_in(block.norm_in(rows))
        rows = rows + block.attn1(block.norm1(rows))
        rows = rows + block.attn2(context).repeat_interleave(positions, 0)[:, None]
        rows = rows + block.ff(block.norm3(rows))
        return torch.unflatten(rows, 0, (batch, positions)).transpose(1, 2)

    monkeypatch.setattr(TemporalTransformerBlock, "forward", straight)
    shared, case = Case(golden("nets"), "ctrl"), Case(golden("nets"), "unet")
    no_residuals = [torch.zeros_like(residual) for residual in reference_residuals(shared)]
    predicted = unet.denoise(
        shared["sample"].flatten(0, 1),
        unet.embed_time(shared["timestep"][None], shared["added_time_ids"][:1]),
        shared["encoder_hidden_states"][:, 0],
        case["pose_latents"],
        no_residuals,
    )
    effect = (predicted - case["out_no_residuals"].flatten(0, 1)).abs().max()
    assert float(effect) == pytest.approx(float(case["interleaved_context_effect"]), rel=1e-4)


# --- the guidance wrappers, through the reference's pipeline --------------------------------------


@pytest.mark.parametrize(
    ("name", "step", "tile"),
    [("one_tile_64", 0, 0), ("one_tile_64", 2, 0), ("tiles_128x192", 0, 0), ("tiles_128x192", 1, 3)],
)
def test_wrappers_equal_the_reference_pipeline(
    unet: UNet,
    controlnet: ControlNet,
    motion_encoder: MotionEncoder,
    point_encoder: PointEncoder,
    golden: Golden,
    name: str,
    step: int,
    tile: int,
) -> None:
    case = Case(golden("e2e"), name)
    frames = case["tiles"][tile]
    height, width = case["traj_flow"].shape[-2:]
    motion = encode_motion(motion_encoder, case["controlnet_flow"][0], case["traj_flow"][0])
    grids = place_points(
        point_encoder, case["aligned_candidate"], case["aligned_subset"][:, 0], case["ref_point_emb"][0], height, width
    )
    before = case["latents_0"] if step == 0 else case["latents"][step - 1]
    conditioning = (
        before[0, frames] / math.sqrt(case["sigmas"][step].item() ** 2 + 1),
        case["image_latents"],
        case["timesteps"][step : step + 1],
        case["image_embeddings"][1:],
        case["added_time_ids"][:1],
    )

    residuals = controlnet(*conditioning, motion[frames], *(grid[frames] for grid in grids))
    predicted = unet(*conditioning, case["pose_latents"][frames], *residuals)

    assert relative_error(predicted, case["unet_out"][step, tile]) < TOLERANCE
    if step == tile == 0:
        assert relative_error(residuals[-1], case["ctrl_step0_tile0_mid"]) < TOLERANCE


def test_guidance_halves_differ_by_the_image_alone(unet: UNet, golden: Golden) -> None:
    case = Case(golden("e2e"), "one_tile_64")
    frames = case["latents_0"].shape[1]
    sizes = Sizes(64, 64, tile=frames, channels=CHANNELS, embed=48, dift=96)
    inputs = sample_inputs(NETWORKS["unet"], sizes, "float32", {})
    inputs |= {"image_embeds": case["image_embeddings"][1:], "image_latents": case["image_latents"]}
    inputs |= {name: torch.zeros_like(value) for name, value in inputs.items() if name.startswith("residual_")}
    blind = inputs | {
        name: torch.zeros_like(inputs[name]) for name in ("image_latents", "image_embeds", "pose_latents")
    }
    unconditional, conditional = unet(*blind.values())
    assert relative_error(unconditional, conditional) < TOLERANCE
    unconditional, conditional = unet(*inputs.values())
    assert relative_error(unconditional, conditional) > 0.1


# --- single-token cross-attention against the whole one -------------------------------------------

EMBED, WIDTH, HEADS = 12, 16, 2


def copy_weights(ours: nn.Module, whole: nn.Module) -> None:
    """Draw weights for diffusers' block and give ours the ones that it keeps."""
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.5)
    published = whole.state_dict()
    dropped = collapsed_tensors(ours)
    assert published.keys() - ours.state_dict().keys() == dropped.keys()
    assert all(tuple(published[name].shape) == shape for name, shape in dropped.items())
    ours.load_state_dict({name: tensor for name, tensor in published.items() if name not in dropped})


@pytest.mark.parametrize("positions", [1, 6, 15])
def test_temporal_cross_attention_interleaves_the_contexts_over_the_rows(positions: int) -> None:
    torch.manual_seed(positions)
    batch, frames = 2, 3
    whole = TemporalBasicTransformerBlock(WIDTH, WIDTH, HEADS, WIDTH // HEADS, cross_attention_dim=EMBED).eval()
    ours = TemporalTransformerBlock(WIDTH, HEADS, EMBED).eval()
    copy_weights(ours, whole)
    hidden, context = torch.randn(batch, frames, positions, WIDTH), torch.randn(batch, EMBED)
    row_contexts = torch.stack([context[row % batch] for row in range(batch * positions)])[:, None]
    expected = whole(hidden.flatten(0, 1), num_frames=frames, encoder_hidden_states=row_contexts)
    assert relative_error(ours(hidden, context).flatten(0, 1), expected) < TOLERANCE


def test_spatial_cross_attention_is_the_value_of_its_token() -> None:
    torch.manual_seed(0)
    batch, frames = 2, 3
    whole = BasicTransformerBlock(WIDTH, HEADS, WIDTH // HEADS, cross_attention_dim=EMBED).eval()
    ours = SpatialTransformerBlock(WIDTH, HEADS, EMBED).eval()
    copy_weights(ours, whole)
    hidden, context = torch.randn(batch, frames, 15, WIDTH), torch.randn(batch, EMBED)
    row_contexts = context.repeat_interleave(frames, dim=0)[:, None]
    expected = whole(hidden.flatten(0, 1), encoder_hidden_states=row_contexts)
    assert relative_error(ours(hidden, context).flatten(0, 1), expected) < TOLERANCE


# --- names, shapes and errors ---------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["spec", "spec_full"])
def test_networks_hold_exactly_the_published_tensors(spec: str) -> None:
    def published(file: str) -> dict[str, tuple[int, ...]]:
        entries = json.loads((GOLDEN / spec / f"{file}.json").read_text())["tensors"]
        return {name: tuple(shape) for name, shape, _ in entries}

    configs = json.loads((GOLDEN / spec / "configs.json").read_text())
    constants = json.loads((GOLDEN / spec / "constants.json").read_text())
    config = DenoiserConfig.from_mapping(json.loads(configs[UNET_CONFIG]))
    mimicmotion, dispose = published("mimicmotion"), published("dispose")
    with torch.device("meta"):
        networks = [
            (UNet(config), strip(mimicmotion, "unet.")),
            (PoseNet(config.channels[0]), strip(mimicmotion, "pose_net.")),
            (ControlNet(config), strip_encoders(dispose)),
            (MotionEncoder(config.channels[0]), strip(dispose, MOTION)),
            (PointEncoder(constants["point_embedding_channels"], config.channels), strip(dispose, POINTS)),
        ]
    for network, expected in networks:
        held = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        assert held | collapsed_tensors(network) == expected


def test_layers_are_configured_like_those_of_diffusers(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        published = dict(UNetSpatioTemporalConditionModel.from_config(config).named_modules())
        ours = dict(UNet(DenoiserConfig.from_mapping(config)).named_modules())
    kinds = (nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.LayerNorm, nn.Linear)
    compared = {name: layer for name, layer in ours.items() if isinstance(layer, kinds)}
    assert len(compared) > 600
    for name, layer in compared.items():
        assert repr(layer) == repr(published[name]), name  # strides, paddings and the epsilon of every norm


def test_builder_lists_every_tensor_that_does_not_fit(config: dict[str, Any], mimicmotion: dict[str, Tensor]) -> None:
    tensors = strip(mimicmotion, "unet.")
    del tensors["conv_out.bias"]
    tensors["conv_in.bias"] = torch.zeros(7)
    tensors["conv_in.extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        build_unet(config, tensors, source="somewhere.pth")
    assert len(caught.value.problems) == 3
    for name in ("conv_out.bias", "conv_in.bias", "conv_in.extra", "somewhere.pth"):
        assert name in str(caught.value)


@pytest.mark.parametrize("build", [build_pose_net, build_motion_encoder, build_point_encoder])
def test_small_builders_name_what_is_missing(build: Callable[[dict[str, Tensor]], nn.Module]) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        build({})


def test_foreign_configuration_is_refused_with_every_difference(config: dict[str, Any]) -> None:
    foreign = config | {"layers_per_block": 3, "cross_attention_dim": None, "num_attention_heads": 8}
    with pytest.raises(CheckpointError) as caught:
        DenoiserConfig.from_mapping(foreign)
    assert len(caught.value.problems) == 3
    assert "layers_per_block is 3, expected 2" in str(caught.value)


# --- precision and export -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(
    pose_net: PoseNet,
    motion_encoder: MotionEncoder,
    point_encoder: PointEncoder,
    controlnet: ControlNet,
    unet: UNet,
) -> dict[str, nn.Module]:
    return {
        "pose_net": pose_net,
        "motion_encoder": motion_encoder,
        "point_encoder": point_encoder,
        "controlnet": controlnet,
        "unet": unet,
    }


def run(network: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    outputs = network(*inputs.values())
    return (outputs,) if isinstance(outputs, Tensor) else outputs


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 1e-2), ("bfloat16", 6e-2)])
@pytest.mark.parametrize("name", ["pose_net", "motion_encoder", "point_encoder", "controlnet", "unet"])
def test_reduced_precision_keeps_the_contract_dtypes(
    networks: dict[str, nn.Module], name: str, dtype: str, bound: float
) -> None:
    spec, sizes = NETWORKS[name], Sizes(64, 64, tile=2, channels=CHANNELS, embed=48, dift=96)
    inputs = sample_inputs(spec, sizes, dtype, dict.fromkeys(spec.dynamic, 2))
    outputs = run(copy.deepcopy(networks[name]).to(getattr(torch, dtype)), inputs)
    expected = run(networks[name], {name: value.float() for name, value in inputs.items()})
    for tensor, ours, theirs in zip(spec.outputs, outputs, expected, strict=True):
        assert ours.dtype == getattr(torch, dtype if tensor.dtype == "compute" else tensor.dtype)
        assert tuple(ours.shape) == sizes.resolve(tensor.shape, dict.fromkeys(spec.dynamic, 2))
        assert (torch.linalg.vector_norm(ours.float() - theirs) / torch.linalg.vector_norm(theirs)).item() < bound


def test_exported_networks_equal_torch(golden_engines: Callable[..., Path]) -> None:
    """As the build of the golden engines recorded it, at 1 row and at the limit where rows are dynamic."""
    manifest = read_manifest(golden_engines(GoldenCase("tiles_128x192")))
    problems = {}
    for name in ("pose_net", "motion_encoder", "point_encoder", "controlnet", "unet"):
        errors = manifest.networks[name].verification
        if set(errors) != {tensor.name for tensor in NETWORKS[name].outputs} or max(errors.values()) > TOLERANCE:
            problems[name] = errors
    assert problems == {}
    for name, transformers in TRANSFORMERS.items():
        operators = Counter(node.op_type for node in onnx.load(manifest.folder / f"{name}.onnx").graph.node)
        assert operators["Softmax"] == 2 * transformers, "only the self-attentions have a softmax"

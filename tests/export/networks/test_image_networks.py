"""CMP, DIFT, the CLIP image encoder and the VAE against the reference's own numbers, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from dispose_rt_export.checkpoints import Checkpoint
from dispose_rt_export.networks.cmp import (
    BINS,
    CmpFlowDecoder,
    CmpImageEncoder,
    SharedConv2d,
    build_cmp_flow_decoder,
    build_cmp_image_encoder,
    expected_flow,
    fold_batch_norms,
)
from dispose_rt_export.networks.dift import PROMPT, Dift, build_dift
from dispose_rt_export.networks.image_encoder import ImageEncoder, build_image_encoder
from dispose_rt_export.networks.vae_decoder import VaeDecoder, build_vae_decoder
from dispose_rt_export.networks.vae_encoder import VaeEncoder, build_vae_encoder
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional

from dispose_rt.contract import CMP_SIZE_PX, NETWORKS
from dispose_rt.engines.manifest import read_manifest
from tests.golden_case import E2E_CASES, GoldenCase

Arrays = Mapping[str, NDArray[Any]]
Golden = Callable[[str], Arrays]

TOLERANCE = 1e-5  # of the array's largest magnitude; measured: at most 4.4e-6
ONNX_TOLERANCE = {"float32": 1e-5, "float16": 3e-3}
"""In the Euclidean norm; measured: at most 4.9e-6 (CMP on white noise; PyTorch is as far from float64) and 1.3e-3."""


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def checkpoint(golden_checkpoint: Path) -> Checkpoint:
    return Checkpoint(golden_checkpoint)


@pytest.fixture(scope="module")
def cmp_image_encoder(checkpoint: Checkpoint) -> CmpImageEncoder:
    return build_cmp_image_encoder(checkpoint)


@pytest.fixture(scope="module")
def cmp_flow_decoder(checkpoint: Checkpoint) -> CmpFlowDecoder:
    return build_cmp_flow_decoder(checkpoint)


@pytest.fixture(scope="module")
def dift(checkpoint: Checkpoint) -> Dift:
    return build_dift(checkpoint)


@pytest.fixture(scope="module")
def image_encoder(checkpoint: Checkpoint) -> ImageEncoder:
    return build_image_encoder(checkpoint)


@pytest.fixture(scope="module")
def vae_encoder(checkpoint: Checkpoint) -> VaeEncoder:
    return build_vae_encoder(checkpoint)


@pytest.fixture(scope="module")
def vae_decoder(checkpoint: Checkpoint) -> VaeDecoder:
    return build_vae_decoder(checkpoint)


def assert_close(actual: Tensor, expected: NDArray[Any], tolerance: float = TOLERANCE) -> None:
    """The largest difference is within the tolerance, relative to the largest expected magnitude."""
    theirs = torch.from_numpy(expected)
    assert actual.dtype == theirs.dtype
    assert actual.shape == theirs.shape
    assert torch.isfinite(actual).all()
    assert ((actual - theirs).abs().max() / theirs.abs().max()).item() <= tolerance


def to_signed_unit(image_u8: NDArray[Any]) -> Tensor:
    """uint8 [height, width, 3] to float32 [1, 3, height, width], -1..1."""
    return torch.from_numpy(image_u8).permute(2, 0, 1)[None].float() / 127.5 - 1


# ---------------------------------------------------------------- CMP


def cmp_inputs(arrays: Arrays, prefix: str = "") -> tuple[Tensor, Tensor, Tensor]:
    image = torch.from_numpy(arrays[f"{prefix}first_frame_384"]).float() / 255 * 2 - 1
    flow = torch.from_numpy(arrays[f"{prefix}sparse_flow_384"][0])
    return image[None], flow, torch.from_numpy(arrays[f"{prefix}mask_384"][0]).float()


def test_cmp_stages(cmp_image_encoder: CmpImageEncoder, cmp_flow_decoder: CmpFlowDecoder, golden: Golden) -> None:
    arrays = golden("cmp")
    image, flow, mask = cmp_inputs(arrays)
    features = cmp_image_encoder(image)
    # the research code encodes the image again for every frame, always with the same result
    assert_close(features[0][..., ::4, ::4].expand(2, -1, -1, -1), arrays["image_encoder_sub4"])
    assert_close(cmp_flow_decoder.flow_encoder(torch.cat([flow, mask], dim=1)), arrays["flow_encoder"])
    logits = cmp_flow_decoder.classify(*features, flow, mask)
    assert_close(logits[..., ::16, ::16], arrays["logits_sub16"])
    assert_close(cmp_flow_decoder(*features, flow, mask), arrays["flow_384"][0])


@pytest.mark.parametrize(("file", "prefix"), [("cmp", ""), *(("e2e", f"{case}.") for case in E2E_CASES)])
def test_cmp_flow_at_output_size(
    file: str, prefix: str, cmp_image_encoder: CmpImageEncoder, cmp_flow_decoder: CmpFlowDecoder, golden: Golden
) -> None:
    arrays = golden(file)
    expected = arrays[f"{prefix}controlnet_flow"][0]
    height, width = expected.shape[-2:]
    image, flow, mask = cmp_inputs(arrays, prefix)
    flow_384 = cmp_flow_decoder(*cmp_image_encoder(image), flow, mask)
    scale = torch.tensor([width / CMP_SIZE_PX, height / CMP_SIZE_PX]).view(2, 1, 1)
    assert_close(functional.interpolate(flow_384, size=(height, width), mode="nearest") * scale, expected)


def test_cmp_frames_do_not_affect_each_other(
    cmp_image_encoder: CmpImageEncoder, cmp_flow_decoder: CmpFlowDecoder, golden: Golden
) -> None:
    image, flow, mask = cmp_inputs(golden("cmp"))
    features = cmp_image_encoder(image)
    together = cmp_flow_decoder(*features, flow, mask)
    alone = torch.cat([cmp_flow_decoder(*features, flow[i : i + 1], mask[i : i + 1]) for i in range(len(flow))])
    assert (together - alone).abs().max() <= TOLERANCE * together.abs().max()
    assert (together[0] - together[1]).abs().max() > 1e-2 * together.abs().max()


def test_expected_flow_is_the_centre_of_a_certain_bin() -> None:
    logits = torch.full((1, 2 * BINS, 1, 3), -1e4)
    for column, (x, y) in enumerate([(0, BINS - 1), (49, 49), (60, 10)]):
        logits[0, x, 0, column] = logits[0, BINS + y, 0, column] = 1e4
    flow = expected_flow(logits)[0, :, 0].T
    width = 100 / 99
    expected = torch.tensor([[-50 + width / 2, 50 - width / 2], [0, 0], [11 * width, -39 * width]])
    assert (flow - expected).abs().max() <= 1e-5


def test_folded_batch_norms_compute_the_same() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(5) + 0.5)
    module = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), norm, nn.ReLU(), nn.Sequential(nn.BatchNorm2d(5))).eval()
    x = torch.randn(2, 3, 8, 8)
    before = module(x)
    fold_batch_norms(module)
    assert isinstance(module[1], nn.Identity)
    assert isinstance(module[3][0], nn.BatchNorm2d)  # no convolution right before it
    assert (module(x) - before).abs().max() <= 1e-5


@pytest.mark.parametrize("shared", [slice(0, 4), slice(4, None)])
def test_shared_convolution_equals_the_concatenated_one(shared: slice) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 7, 3, padding=1)
    x = torch.randn(3, 6, 9, 9)
    x[:, shared] = x[:1, shared]
    own = x[:, [c for c in range(6) if c not in range(6)[shared]]]
    assert (SharedConv2d(conv, shared)(x[:1, shared], own) - conv(x)).abs().max() <= 1e-5


# ---------------------------------------------------------------- VAE


def test_vae_posterior(vae_encoder: VaeEncoder, golden: Golden) -> None:
    arrays = golden("nets")
    image = torch.from_numpy(arrays["vae.image"])
    mean, log_variance = vae_encoder.posterior(image)
    assert_close(log_variance, arrays["vae.logvar"])
    assert_close(mean, arrays["vae.mean"])
    assert torch.equal(vae_encoder(image), mean)


@pytest.mark.parametrize("case", E2E_CASES)
def test_image_latents(case: str, vae_encoder: VaeEncoder, golden: Golden) -> None:
    arrays = golden("e2e")
    assert_close(vae_encoder(to_signed_unit(arrays[f"{case}.pil_image"])), arrays[f"{case}.image_latents"])


def decode_in_chunks(decoder: VaeDecoder, latents: Tensor, chunk: int) -> Tensor:
    return torch.cat([decoder(part) for part in latents.split(chunk)])


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_decoded_chunks(chunk: int, vae_decoder: VaeDecoder, golden: Golden) -> None:
    arrays = golden("nets")
    frames = decode_in_chunks(vae_decoder, torch.from_numpy(arrays["vae.latents"])[0], chunk)
    assert_close(frames.transpose(0, 1)[None], arrays[f"vae.decoded_chunk{chunk}"])


@pytest.mark.parametrize("case", E2E_CASES)
def test_decoded_clips(case: str, vae_decoder: VaeDecoder, golden: Golden) -> None:
    arrays = golden("e2e")
    chunk = int(arrays[f"{case}.config"][7])
    latents = torch.from_numpy(arrays[f"{case}.latents"][-1, 0])
    assert_close(decode_in_chunks(vae_decoder, latents, chunk), arrays[f"{case}.decoded"])


def test_scaling_factor_comes_from_the_configuration(checkpoint: Checkpoint, vae_decoder: VaeDecoder) -> None:
    class Doubled(Checkpoint):
        @property
        def configs(self) -> Any:
            config = dict(checkpoint.configs["svd_vae"])
            return {"svd_vae": config | {"scaling_factor": 2 * config["scaling_factor"]}}

    latents = torch.randn(2, 4, 4, 4)
    assert torch.equal(build_vae_decoder(Doubled(checkpoint.folder))(2 * latents), vae_decoder(latents))


# ---------------------------------------------------------------- CLIP


@pytest.mark.parametrize("case", ["small", "large"])
def test_image_embedding(case: str, image_encoder: ImageEncoder, golden: Golden) -> None:
    arrays = golden("nets")
    expected = arrays[f"clip.{case}.image_embeddings_cfg"]
    embeds = image_encoder(torch.from_numpy(arrays[f"clip.{case}.pixel_values"]))
    assert_close(embeds[0], expected[1])


# ---------------------------------------------------------------- DIFT


def test_dift_prompt(checkpoint: Checkpoint, dift: Dift, golden: Golden) -> None:
    arrays = golden("nets")
    assert checkpoint.tokenize(PROMPT)[0].tolist() == arrays["dift.input_ids"].tolist()
    assert_close(dift.prompt_embeds, arrays["dift.prompt_embeds"])


def test_dift_stages(dift: Dift, golden: Golden) -> None:
    arrays = golden("nets")
    image = torch.from_numpy(arrays["dift.image_u8"]).float() / 127.5 - 1
    noises = [torch.from_numpy(arrays[f"dift.{name}_noise"]) for name in ("vae", "unet")]
    mean, log_variance = dift.posterior(image)
    assert_close(mean, arrays["dift.posterior_mean"])
    assert_close((log_variance / 2).exp(), arrays["dift.posterior_std"])
    assert dift.signal**2 == pytest.approx(float(arrays["dift.alpha_cumprod_261"]), rel=1e-7)
    assert_close(dift.noisy_latents(image, *noises), arrays["dift.noisy_latents"])
    assert_close(dift(image, *noises), arrays["dift.feature"])


@pytest.mark.parametrize("case", E2E_CASES)
def test_dift_features(case: str, dift: Dift, golden: Golden) -> None:
    arrays = golden("e2e")
    noises = [torch.from_numpy(arrays[f"{case}.noise_dift_{name}"]) for name in ("vae", "unet")]
    # unlike the VAE, DIFT sees the crop itself, not its round trip through the pipeline's image processor
    assert_close(dift(to_signed_unit(arrays[f"{case}.ref_crop"]), *noises), arrays[f"{case}.dift_feature"])


def test_dift_holds_no_layer_behind_the_features(dift: Dift) -> None:
    names = dift.state_dict().keys()
    assert any(name.startswith("unet.up_blocks.1.upsamplers.") for name in names)
    assert not any(name.startswith(("unet.up_blocks.2", "unet.conv_norm_out", "unet.conv_out")) for name in names)
    assert dift.unet.time_embedding.value.shape == (1, 128)


# ---------------------------------------------------------------- ONNX: what the build of the golden engines recorded


IMAGE_NETWORKS = ("cmp_image_encoder", "cmp_flow_decoder", "dift", "image_encoder", "vae_encoder", "vae_decoder")


@pytest.mark.parametrize(("case", "precision"), [("tiles_128x192", "fp32"), ("one_tile_64", "fp16")])
def test_exported_networks(case: str, precision: str, golden_engines: Callable[..., Path]) -> None:
    """Builds compare at 1 frame and at the limit where frames are dynamic: an exporter may take a 1 for a constant."""
    manifest = read_manifest(golden_engines(GoldenCase(case), precision))
    problems = {}
    for name in IMAGE_NETWORKS:
        spec, record = NETWORKS[name], manifest.networks[name]
        graph = onnx.load(manifest.folder / record.files[0].path, load_external_data=False).graph
        found = {
            value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            for value in (*graph.input, *graph.output)
        }
        expected = {tensor.name: tensor.resolve_dtype(record.compute_dtype) for tensor in (*spec.inputs, *spec.outputs)}
        errors = record.verification
        within = max(errors.values()) <= ONNX_TOLERANCE[record.compute_dtype]
        if list(found.items()) != list(expected.items()) or set(errors) != {t.name for t in spec.outputs} or not within:
            problems[name] = (found, errors)
    assert problems == {}


def test_nothing_constant_is_computed_at_run_time(golden_engines: Callable[..., Path]) -> None:
    """No token is looked up, no time step embedded, no noise drawn and no batch norm left."""
    engines = golden_engines(GoldenCase("one_tile_64"))
    for name in ("dift", "cmp_image_encoder", "cmp_flow_decoder"):
        kinds = {node.op_type for node in onnx.load(engines / f"{name}.onnx").graph.node}
        assert kinds.isdisjoint({"Gather", "Sin", "Cos", "BatchNormalization", "RandomNormalLike"}), name

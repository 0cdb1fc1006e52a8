"""Made-up weights of the toy checkpoint: seeded random numbers, and lanes through the networks that carry the picture.

Random networks of this depth turn every input into the same noise. So that a demo shows its reference and its dance, a
few channels (lanes) of the autoencoder, of CMP, of PoseNet and of the UNet are set by hand. Everything beside the lanes
is random, and leaks into them.

- The VAE encoder's lanes are red, green and blue, averaged over 8 x 8 pixels; the decoder's lanes bring them back.
- The UNet's lanes are the noisy latents u and the image latents z. It predicts v = a (u - z) plus what the random rest
  says. With sigma = tan(theta), a sampler of v-predictions integrates du / dtheta = v from pi / 2 down to 0, so u is
  drawn to z.
- CMP's lanes spread the motion hints over their neighbourhood; the ControlNet and its motion encoder have no lanes.
- PoseNet's lanes carry the drawn pose, which is added to z. ControlNet residuals reach all channels, lanes as well.

Group norms stand in the way: each brings a lane to mean 0 and variance 1. In the encoder, constant channels of the same
group keep the scale; elsewhere the picture is stretched to full contrast. SiLUs are passed at +6, where they are nearly
straight.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..networks.cmp import BINS, FLOW_LIMIT_PX
from .shapes import Shapes

Tensors = dict[str, Tensor]

_GAINS = (
    ("pose_net.final_proj.", 1.0),
    ("pose_net.", 1.7),
    ("controlnet_cond_embedding.conv_in_flow.", 0.2),
    ("controlnet_cond_embedding.conv_in_traj.", 16.0),
    ("controlnet_cond_embedding.", 1.45),
    ("point_adapter.", 2.5),
    ("controlnet_down_blocks.0.", 0.03),
    ("controlnet_down_blocks.", 0.1),
    ("controlnet_mid_block.", 0.3),
    ("add_embedding.", 3.0),
    ("unet.add_embedding.", 3.0),
    ("module.flow_decoder.head.", 0.3),
)
"""Name prefix -> gain of matrices and kernels through which a signal would fade at gain 1."""

_STRAIGHT = 6.0
"""Input at which SiLU is nearly the identity: silu(6 + x) = 6 + x up to 0.03 for |x| < 1."""


def draw_tensors(file: str, shapes: Shapes, seed: int) -> Tensors:
    """Draw the tensors of one weight file.

    Args:
        file: name of the file in `checkpoints.FILES`.
        shapes: names and shapes of its tensors.
        seed: the same seed gives the same tensors, whatever else is drawn.

    Returns:
        float32 tensors by name, int64 where the published tensor counts something.
    """
    tensors = {name: _draw(name, shape, seed) for name, shape in shapes.items()}
    lay_lanes = _LANES.get(file)
    if lay_lanes is not None:
        lay_lanes(tensors)
    return tensors


def _draw(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    fixed = fixed_tensor(name, shape)
    if fixed is not None:
        return fixed
    stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    return shape_normals(name, torch.from_numpy(stream.standard_normal(shape, dtype=np.float32)))


def fixed_tensor(name: str, shape: tuple[int, ...]) -> Tensor | None:
    """Return a tensor that is not drawn: counters, positions, and PoseNet's scale. None for all others."""
    kind = name.rsplit(".", 1)[-1]
    if kind == "position_ids":
        return torch.arange(math.prod(shape)).reshape(shape)
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if kind == "scale":
        return torch.full(shape, 2.0)
    return None


def shape_normals(name: str, normal: Tensor) -> Tensor:
    """Turn unit normal numbers into a weight.

    Kernels keep the variance of what they are applied to; norms and biases stay near 1 and 0.
    """
    if normal.ndim >= 2:
        gain = next((gain for prefix, gain in _GAINS if name.startswith(prefix)), 1.0)
        return normal * (gain / math.sqrt(math.prod(normal.shape[1:])))
    kind = name.rsplit(".", 1)[-1]
    scale, offset = {"mix_factor": (0.5, 0.0), "running_var": (0.1, 1.0), "weight": (0.1, 1.0)}.get(kind, (0.1, 0.0))
    return normal.abs() * scale + offset if kind == "running_var" else normal * scale + offset


_CONSTANT = 12.0
"""Value of the constant channels that keep the scale of the lane in their group: large against any picture."""
_ENCODER_GROUP = 3
_COLOURS = range(3)
_TEXTURE = 0.06
"""How much of the random channels leaks into the decoded colours."""


def _lay_autoencoder_lanes(tensors: Tensors) -> None:
    encoder, decoder = _Part(tensors, "encoder."), _Part(tensors, "decoder.")
    # a lane and two opposite constants fill a group of the last norm
    lanes = [_ENCODER_GROUP * colour for colour in _COLOURS]
    kept = range(_ENCODER_GROUP * len(lanes))
    encoder.keep(kept)
    for colour, lane in enumerate(lanes):
        encoder.route("conv_in", lane, {colour: 1.0})
        for constant, sign in ((lane + 1, 1), (lane + 2, -1)):
            encoder.route("conv_in", constant, {}, bias=sign * _CONSTANT)
        encoder.pass_norm("conv_norm_out", lane, math.sqrt(2 / 3) * _CONSTANT)
        encoder.route("conv_out", colour, {lane: 1.0}, bias=-_STRAIGHT)
    whole = _Part(tensors, "")
    for latent in _COLOURS:
        whole.route("quant_conv", latent, {latent: 1.0})
        decoder.route("conv_in", latent, {latent: 1.0})
    decoder.keep(_COLOURS)
    tensors["decoder.conv_out.weight"] *= _TEXTURE
    tensors["decoder.conv_out.weight"][:, : len(lanes)] = 0
    tensors["decoder.time_conv_out.weight"] *= _TEXTURE
    for colour in _COLOURS:
        decoder.pass_norm("conv_norm_out", colour, 1.0)
        decoder.mix("conv_out", colour, {colour: 0.4}, bias=0.25 - 0.4 * _STRAIGHT)
        decoder.mix("time_conv_out", colour, {colour: 1.0}, bias=0.0)


def _silence_stillness(tensors: Tensors, prefix: str) -> None:
    """Zero the biases: a network of convolutions and SiLUs then maps 0 to 0, up to the border."""
    for name, tensor in tensors.items():
        if name.startswith(prefix) and name.endswith(".bias"):
            tensor.zero_()


_POSE_GAIN, _POSE_BRIGHTNESS = 1.8, 2.0
"""Gain per layer against the loss in SiLU, which halves what is small; gain of the drawing in the result."""


def _lay_pose_lanes(tensors: Tensors) -> None:
    """Pose images are black, -1, where there is nothing: the first layer shifts that to 0. Lanes carry the drawing."""
    _silence_stillness(tensors, "pose_net.")
    pose_net = _Part(tensors, "pose_net.")
    layers = sorted({name.rsplit(".", 1)[0] for name in pose_net.names(("weight",)) if name.startswith("conv_layers.")})
    for layer in layers:
        kernel = _halving_kernel(pose_net[f"{layer}.weight"].shape[-1])
        for colour in _COLOURS:
            pose_net.route(layer, colour, {}, bias=1.0 if layer == "conv_layers.0" else 0.0)
            pose_net[f"{layer}.weight"][colour, colour] = kernel * (1.0 if layer == "conv_layers.0" else _POSE_GAIN)
    for colour in _COLOURS:
        pose_net.route("final_proj", 4 + colour, {colour: _POSE_BRIGHTNESS})


def _halving_kernel(size: int) -> Tensor:
    """The middle of an odd kernel, the mean of the four in the middle of an even one."""
    kernel = torch.zeros(size, size)
    middle = slice((size - 1) // 2, size // 2 + 1)
    kernel[middle, middle] = 1.0 / (2 - size % 2) ** 2
    return kernel


def _lay_motion_lanes(tensors: Tensors) -> None:
    _silence_stillness(tensors, "controlnet_cond_embedding.")


_HINT_SHARPNESS = 0.05
"""Inverse variance, in 1 / px^2, of the distribution over CMP's bins of flow."""
_IMAGE_CHANNELS, _BRANCH_CHANNELS = 256, 128


def _lay_hint_lanes(tensors: Tensors) -> None:
    """CMP spreads each motion hint over the cells of 32 and 64 pixels that it falls into.

    Four lanes carry the flow to the right, left, down and up, all at least 0: ReLU and max pooling let them pass.
    """
    encoder, decoder = _Part(tensors, "module.flow_encoder.features."), _Part(tensors, "module.flow_decoder.")
    for lane in range(4):
        axis, sign = divmod(lane, 2)
        encoder.route("0", lane, {})
        encoder["0.weight"][lane, axis, 2:4, 2:4] = 1 - 2 * sign  # a hint is in one such window, wherever it is
        encoder.pass_batch_norm("1", lane)
        encoder.route("4", lane, {lane: 4.0})  # one of the four cells that are averaged next
        encoder.pass_batch_norm("5", lane)
        for scale in (1, 2, 4, 8):
            first = int(scale > 1)  # behind the pooling layer, where there is one
            for layer, source in ((first, _IMAGE_CHANNELS + lane), (first + 3, lane), (first + 6, lane)):
                decoder.route(f"decoder{scale}.{layer}", lane, {source: 1.0})
                decoder.pass_batch_norm(f"decoder{scale}.{layer + 1}", lane)
        coarse, coarsest = (number * _BRANCH_CHANNELS + lane for number in (2, 3))
        # interpolation between cells leaves 0.44 of a hint in its place, on average over places and both branches
        fusions = {"fusion8": {coarse: 1.0, coarsest: 1.0}, "fusion4": {lane: 1.0}, "fusion2": {lane: 1.0}}
        for fusion, sources in fusions.items():
            decoder.route(f"{fusion}.0", lane, sources)
            decoder.pass_batch_norm(f"{fusion}.1", lane)
    _read_hints_out(decoder)


def _read_hints_out(decoder: _Part) -> None:
    """Logits of a normal distribution around the flow f: -(b - f)^2 / 2, which is linear in f but for a common term."""
    width = 2 * FLOW_LIMIT_PX / BINS
    centres = (torch.arange(BINS) + 0.5) * width - FLOW_LIMIT_PX
    weight, bias = decoder["head.weight"], decoder["head.bias"]
    weight[:, :4] = 0
    for axis in range(2):
        bins = slice(axis * BINS, (axis + 1) * BINS)
        for sign in range(2):
            weight[bins, 2 * axis + sign, 0, 0] = (1 - 2 * sign) * _HINT_SHARPNESS * centres
        bias[bins] = -_HINT_SHARPNESS * centres**2 / 2


_PULL = 2.5
"""Strength a of the pull of the noisy latents to the image latents."""
_SHARE = 0.3
"""Share of noisy latents in the lanes of the image latents; keeps their scale where the image latents are zero."""
_LEAK = 0.08
"""How much of the deep random layers leaks into the lanes."""


def _lay_unet_lanes(tensors: Tensors) -> None:
    _lay_pose_lanes(tensors)
    unet = _Part(tensors, "unet.")
    latents = range(4)
    last = "up_blocks.3.resnets.2.spatial_res_block."
    skipped = unet["conv_in.bias"].shape[0]  # the skip connection's channels come second
    unet.dampen(("up_blocks.3.resnets.2.", "up_blocks.3.attentions.2."), range(8), _LEAK)
    unet[f"{last}conv_shortcut.weight"][:8] *= _LEAK
    unet["conv_out.weight"][:] *= _LEAK
    unet["conv_out.weight"][:, :8] = 0
    for latent in latents:
        noisy, image = latent, 4 + latent
        unet.route("conv_in", noisy, {noisy: 1.0})
        unet.route("conv_in", image, {image: 1.0, noisy: _SHARE})
        for lane in (noisy, image):
            unet.mix(f"{last}conv_shortcut", lane, {skipped + lane: 1.0}, bias=0.0)
            unet.pass_norm("conv_norm_out", lane, 1.0)
        unet.mix("conv_out", latent, {noisy: _PULL, image: -_PULL}, bias=0.0)


class _Part:
    """The tensors below a prefix, and the ways to set some of their channels by hand."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self._tensors = tensors
        self._prefix = prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def names(self, endings: Iterable[str]) -> list[str]:
        cut = len(self._prefix)
        mine = (name[cut:] for name in self._tensors if name.startswith(self._prefix))
        return [name for name in mine if name.endswith(tuple(endings))]

    def route(self, layer: str, channel: int, sources: Mapping[int, float], bias: float = 0.0) -> None:
        """Make one output channel of a convolution the weighted sum of input channels, pixel by pixel."""
        self[f"{layer}.weight"][channel] = 0
        self.mix(layer, channel, sources, bias)

    def mix(self, layer: str, channel: int, sources: Mapping[int, float], bias: float) -> None:
        """Add such a sum to what an output channel has."""
        weight = self[f"{layer}.weight"]
        centre = tuple(size // 2 for size in weight.shape[2:])
        for source, amount in sources.items():
            weight[(channel, source, *centre)] += amount
        self[f"{layer}.bias"][channel] = bias

    def pass_norm(self, layer: str, channel: int, scale: float) -> None:
        """Scale a channel behind its norm and lift it to where SiLU is straight."""
        self[f"{layer}.weight"][channel] = scale
        self[f"{layer}.bias"][channel] = _STRAIGHT

    def pass_batch_norm(self, layer: str, channel: int) -> None:
        """Leave a channel as it is."""
        for kind, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self[f"{layer}.{kind}"][channel] = value

    def dampen(self, layers: tuple[str, ...], channels: range, factor: float) -> None:
        """Scale what the residual branches of these layers add to channels."""
        branches = (
            "conv2.weight",
            "conv2.bias",
            "to_out.0.weight",
            "to_out.0.bias",
            "proj_out.weight",
            "proj_out.bias",
        )
        for name in self.names(branches):
            if name.startswith(layers):
                self[name][channels.start : channels.stop] *= factor

    def keep(self, channels: range) -> None:
        """Let channels pass unchanged, but for their size: halved by averaging, doubled by interpolation."""
        self.dampen(("",), channels, 0.0)
        halve = torch.zeros(3, 3)
        halve[:2, :2] = 1 / 4
        double = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
        kernels = {"conv_shortcut": torch.ones(1, 1), "downsamplers.0.conv": halve, "upsamplers.0.conv": double}
        for ending, kernel in kernels.items():
            for name in self.names([f"{ending}.weight"]):
                for channel in channels:
                    self[name][channel] = 0
                    self[name][channel, channel] = kernel
                    self[name.replace(".weight", ".bias")][channel] = 0


_LANES: Mapping[str, Callable[[Tensors], None]] = {
    "cmp": _lay_hint_lanes,
    "svd_vae": _lay_autoencoder_lanes,
    "mimicmotion": _lay_unet_lanes,
    "dispose": _lay_motion_lanes,
}

"""Measures the errors of reduced precision, network by network, on which `compile.precision` rests.

    python benchmarks/accuracy/precision.py --weights WEIGHTS --size 128x64
    python benchmarks/accuracy/precision.py --random-weights toy --precision bf16 --only unet,controlnet

Everything runs in PyTorch on the CPU, which rounds the result of every operation. (ONNX Runtime computes half-precision
graphs in float32 there, so it sees the rounding of the weights alone.) Errors are relative, in the Euclidean norm,
against float32; the worst output of a network counts.

Norms do not depend on the scale of their input. So the same network with the inputs of all norms scaled should compute
the same, and does, until a number leaves the range of the precision. `x50` and `x1000` are such runs.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from dispose_rt_export.builds.plan import RECIPES
from dispose_rt_export.checkpoints import Checkpoint, Weights
from dispose_rt_export.command import parse_only, parse_size, sizes_of
from dispose_rt_export.compile.precision import NORMS, POLICIES, Float32Layer, Policy, reduce_precision
from dispose_rt_export.compile.trace import TORCH_DTYPES, sample_inputs
from dispose_rt_export.compile.verify import relative_error
from dispose_rt_export.synthetic.random_weights import RandomWeights
from torch import Tensor, nn

from dispose_rt.contract import NETWORKS, NetworkSpec
from dispose_rt.engines.manifest import COMPUTE_DTYPES

ATTENTION = "torch.nn.functional.scaled_dot_product_attention"


@dataclass(frozen=True)
class Variant:
    """One way to compute a network in reduced precision.

    Attributes:
        norms: "float32"; "kernel": PyTorch's own, which accumulates in float32; or "plain": every step rounded.
        softmax: "kernel": PyTorch's own attention, which accumulates in float32; "plain" or "float32": three steps.
        scale: factor of the inputs of all norms.
    """

    norms: str
    softmax: str = "kernel"
    scale: float = 1.0


VARIANTS: Mapping[str, Variant] = {
    "all plain": Variant("plain", "plain"),
    "kernels": Variant("kernel"),
    "norms f32": Variant("float32"),
    "norms, softmax f32": Variant("float32", "float32"),
    "norms f32, softmax plain": Variant("float32", "plain"),
    "all plain x50": Variant("plain", "plain", 50.0),
    "norms f32 x50": Variant("float32", scale=50.0),
    "all plain x1000": Variant("plain", "plain", 1000.0),
    "norms f32 x1000": Variant("float32", scale=1000.0),
}


class PlainNorm(nn.Module):
    """A group or layer norm whose steps are rounded one by one, as a compiler may take it apart."""

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return standardise(hidden, self.norm.eps) * self.norm.weight + self.norm.bias
        grouped = torch.unflatten(hidden, 1, (self.norm.num_groups, -1)).flatten(2)
        channels = (-1, *(1,) * (hidden.ndim - 2))
        standard = standardise(grouped, self.norm.eps).reshape(hidden.shape)
        return standard * self.norm.weight.view(channels) + self.norm.bias.view(channels)


def standardise(hidden: Tensor, eps: float) -> Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)


class Scaled(nn.Module):
    """Multiplies the input of a norm."""

    def __init__(self, norm: nn.Module, factor: float) -> None:
        super().__init__()
        self.norm, self.factor = norm, factor

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.norm(hidden * self.factor)
        return result


def replace_layers(module: nn.Module, kinds: tuple[type, ...], make: Callable[[nn.Module], nn.Module]) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, kinds):
            setattr(module, name, make(child))
        else:
            replace_layers(child, kinds, make)


def attend(softmax: str) -> Callable[..., Tensor]:
    """Attention in three steps, each rounded; the softmax in its own precision."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
        if softmax == "float32":
            return scores.float().softmax(-1).to(value.dtype) @ value
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        return (weights / weights.sum(-1, keepdim=True)) @ value

    return attention


@contextmanager
def widest_norm_input(module: nn.Module) -> Iterator[list[float]]:
    """Note the largest magnitude that any norm reads."""
    widest = [0.0]

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        widest[0] = max(widest[0], float(inputs[0].abs().max()))

    with ExitStack() as stack:
        for layer in module.modules():
            if isinstance(layer, NORMS):
                stack.callback(layer.register_forward_pre_hook(note).remove)
        yield widest


def run(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        outputs = module(*inputs)
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def vary(module: nn.Module, policy: Policy, variant: Variant, dtype: torch.dtype) -> nn.Module:
    """Copy a float32 module as a variant computes it; parts that the policy keeps stay float32."""
    varied = copy.deepcopy(module)
    reduce_precision(varied, replace(policy, reduced=True, norms=variant.norms == "float32"), dtype)
    if variant.norms == "plain":
        replace_layers(varied, NORMS, PlainNorm)  # type: ignore[arg-type]
    if variant.scale != 1:
        replace_layers(varied, (*NORMS, PlainNorm, Float32Layer), lambda norm: Scaled(norm, variant.scale))
    return varied


def measure(
    module: nn.Module, spec: NetworkSpec, policy: Policy, inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> list[str]:
    """Return one row of the table after its name: the widest norm input, then an error per variant."""
    with widest_norm_input(module) as widest:
        expected = run(module, list(inputs.values()))
    cells = [f"{widest[0]:.0f}" if widest[0] else "no norm"]
    for name, variant in VARIANTS.items():
        if name != "kernels" and not widest[0]:  # neither norms nor attention: nothing to vary
            cells.append("")
            continue
        varied = vary(module, policy, variant, dtype)
        feeds = [
            value.to(dtype) if tensor.dtype == "compute" else value
            for tensor, value in zip(spec.inputs, inputs.values(), strict=True)
        ]
        with ExitStack() as stack:
            if variant.softmax != "kernel":
                stack.enter_context(mock.patch(ATTENTION, attend(variant.softmax)))
            outputs = run(varied, feeds)
        pairs = zip(outputs, expected, strict=True)
        cells.append(f"{max(relative_error(ours.float().numpy(), theirs.numpy()) for ours, theirs in pairs):.1e}")
    return cells


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, metavar="DIR", help="folder of published checkpoints")
    source.add_argument("--random-weights", choices=["toy", "full"])
    parser.add_argument("--size", default="128x64", metavar="WxH")
    parser.add_argument("--tile-frames", type=int, default=3, metavar="N")
    parser.add_argument("--precision", choices=["fp16", "bf16"], default="fp16")
    parser.add_argument("--only", metavar="NETWORK,...")
    options = parser.parse_args()

    weights: Weights = Checkpoint(options.weights) if options.weights else RandomWeights(options.random_weights)
    sizes = sizes_of(weights, parse_size(options.size), options.tile_frames, 2)
    dtype = TORCH_DTYPES[COMPUTE_DTYPES[options.precision]]
    header = ["network", "widest norm input", *VARIANTS]
    print("|", " | ".join(header), "|\n" + "|---" * len(header) + "|", flush=True)
    for name in parse_only(options.only):
        if name in RECIPES:
            module = RECIPES[name].build(weights).eval().requires_grad_(False)
            spec = NETWORKS[name]
            inputs = sample_inputs(spec, sizes, "float32", dict.fromkeys(spec.dynamic, 2))
            rows = {name: POLICIES[name]}
            if POLICIES[name].parts:
                rows[f"{name}, {', '.join(POLICIES[name].parts)} reduced too"] = replace(POLICIES[name], parts=())
            for label, policy in rows.items():
                print("|", " | ".join([label, *measure(module, spec, policy, inputs, dtype)]), "|", flush=True)


if __name__ == "__main__":
    main()

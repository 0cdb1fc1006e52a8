"""The table that says what computes in which precision and why, and its application to a module.

It is applied to the module before tracing, so that every backend gets the same decisions. They rest on errors that
`benchmarks/accuracy/precision.py` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from dispose_rt.contract import NETWORKS

from .trace import TORCH_DTYPES

NORMS = (nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Policy:
    """The parts of a network that keep float32 in an engine of reduced precision.

    Attributes:
        why: the reason.
        reduced: whether anything computes in the engine's precision.
        norms: whether casts to float32 and back surround group and layer norms. Statistics of a norm must be float32:
            squares of activations exceed what half precision holds. But their nodes say so already (`stash_type`), and
            TensorRT, AOTInductor and PyTorch do so anyway, while the casts cost memory: 11.0 instead of 7.3 GB in the
            VAE decoder at 576x1024.
        parts: names of submodules that keep float32, with everything in them. They convert their inputs themselves.
    """

    why: str
    reduced: bool = True
    norms: bool = False
    parts: tuple[str, ...] = ()


_PUBLISHED = Policy("passed through as published", reduced=False)
_CMP = Policy("once per clip or cheap; the reference falls back to float32 as well", reduced=False)
_DENOISER = Policy("all of the run time; attention over 9216 positions fits no memory unless fused, in half precision")

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "person_detector": _PUBLISHED,
        "pose_estimator": _PUBLISHED,
        "dift": Policy(
            "attention over 9216 positions fits no memory unless fused, in half precision; the autoencoder is cheap",
            parts=("posterior",),
        ),
        "cmp_image_encoder": _CMP,
        "cmp_flow_decoder": _CMP,
        "image_encoder": Policy("once per clip; half of the memory"),
        "vae_encoder": Policy("once per clip; its configuration asks for float32 (`force_upcast`)", reduced=False),
        "pose_net": Policy("no norms, no attention"),
        "motion_encoder": Policy("no norms, no attention"),
        "point_encoder": Policy("no norms, no attention"),
        "controlnet": _DENOISER,
        "unet": _DENOISER,
        "vae_decoder": Policy("once per frame; half of the time and memory"),
    }
)
"""By network. Sinusoids, expectations over bins and the guidance layout are float32 in the networks themselves."""

FLOAT32_ALWAYS = tuple(name for name in NETWORKS if not POLICIES[name].reduced)
"""Networks that compute in float32 in every precision."""


class Float32Layer(nn.Module):
    """Computes one layer in float32 inside a network of reduced precision.

    Its weights become buffers: modules around it ask their first parameter for the precision that they compute in.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, parameter in list(layer.named_parameters(recurse=False)):
            delattr(layer, name)
            layer.register_buffer(name, parameter.detach())
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.layer(hidden.float())
        return result.to(hidden.dtype)


def apply_precision(module: nn.Module, network: str, compute_dtype: str) -> nn.Module:
    """Convert a float32 module to an engine's precision, following the table.

    Args:
        module: a network as its builder returns it, float32; changed in place.
        network: name in the contract.
        compute_dtype: "float32", "float16" or "bfloat16".

    Returns:
        The module.
    """
    return reduce_precision(module, POLICIES[network], TORCH_DTYPES[compute_dtype])


def reduce_precision(module: nn.Module, policy: Policy, dtype: torch.dtype) -> nn.Module:
    """Convert a float32 module to a dtype in place, except what the policy keeps, and return it."""
    if policy.reduced and dtype != torch.float32:
        kept = tuple(module.get_submodule(name) for name in policy.parts)
        _reduce(module, dtype, policy.norms, kept)
    return module


def _reduce(module: nn.Module, dtype: torch.dtype, keep_norms: bool, kept: tuple[nn.Module, ...]) -> None:
    for name, child in list(module.named_children()):
        if keep_norms and isinstance(child, NORMS):
            setattr(module, name, Float32Layer(child))
        elif child not in kept:
            _reduce(child, dtype, keep_norms, kept)
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.is_floating_point():
            setattr(module, name, buffer.to(dtype))

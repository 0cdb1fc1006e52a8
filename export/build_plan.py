"""What is to be built for one network, and the key that says whether it has been built already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import dispose_rt
from dispose_rt import contract
from dispose_rt.contract import NETWORKS, NetworkSpec, Sizes
from dispose_rt.manifest import COMPUTE_DTYPES

from .checkpoints import Checkpoint, Weights
from .networks.cmp import build_cmp_flow_decoder, build_cmp_image_encoder
from .networks.controlnet import build_controlnet
from .networks.dift import build_dift
from .networks.image_encoder import build_image_encoder
from .networks.motion_encoder import build_motion_encoder
from .networks.point_encoder import build_point_encoder
from .networks.pose_net import build_pose_net
from .networks.unet import build_unet
from .networks.vae_decoder import build_vae_decoder
from .networks.vae_encoder import build_vae_encoder
from .onnx_export import OPSET
from .verify import TOLERANCES

FLOAT32_ALWAYS = ("person_detector", "pose_estimator", "dift", "cmp_image_encoder", "cmp_flow_decoder", "vae_encoder")
"""Networks that compute in float32 in every precision. The detectors are published that way; the reference falls back
to float32 in CMP; DIFT and the VAE encoder run once per clip, and the VAE's configuration warns of half precision."""


@dataclass(frozen=True)
class NetworkPlan:
    """One network to build.

    Attributes:
        spec: its contract.
        sizes: resolves the contract's symbols.
        compute_dtype: dtype of its parameters and of tensors marked "compute".
        tolerance: largest relative error against PyTorch in float32.
        build_key: hash of everything that goes into the file.
    """

    spec: NetworkSpec
    sizes: Sizes
    compute_dtype: str
    tolerance: float
    build_key: str


_MOTION_PREFIX = "controlnet_cond_embedding."
_POINT_PREFIX = "point_adapter."


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _build_controlnet(weights: Weights) -> nn.Module:
    elsewhere = (_MOTION_PREFIX, _POINT_PREFIX)
    tensors = {name: tensor for name, tensor in weights.controlnet().items() if not name.startswith(elsewhere)}
    return build_controlnet(weights.configs["svd_unet"], tensors)


@dataclass(frozen=True)
class Recipe:
    """How a network is made: its builder, and the files of the checkpoint that it reads."""

    build: Callable[[Weights], nn.Module]
    files: tuple[str, ...]


RECIPES: Mapping[str, Recipe] = {
    "dift": Recipe(build_dift, ("sd15_unet", "sd15_vae", "sd15_text_encoder", "sd15_vocabulary", "sd15_merges")),
    "cmp_image_encoder": Recipe(build_cmp_image_encoder, ("cmp",)),
    "cmp_flow_decoder": Recipe(build_cmp_flow_decoder, ("cmp",)),
    "image_encoder": Recipe(build_image_encoder, ("image_encoder",)),
    "vae_encoder": Recipe(build_vae_encoder, ("svd_vae",)),
    "pose_net": Recipe(lambda weights: build_pose_net(weights.pose_net()), ("mimicmotion",)),
    "motion_encoder": Recipe(
        lambda weights: build_motion_encoder(_below(weights.controlnet(), _MOTION_PREFIX)), ("dispose",)
    ),
    "point_encoder": Recipe(
        lambda weights: build_point_encoder(_below(weights.controlnet(), _POINT_PREFIX)), ("dispose",)
    ),
    "controlnet": Recipe(_build_controlnet, ("dispose",)),
    "unet": Recipe(lambda weights: build_unet(weights.configs["svd_unet"], weights.unet()), ("mimicmotion",)),
    "vae_decoder": Recipe(build_vae_decoder, ("svd_vae",)),
}
"""How every network that is not published as a file is made."""


def plan_network(name: str, checkpoint: Checkpoint, sizes: Sizes, precision: str) -> NetworkPlan:
    """Plan one network of the contract."""
    spec = NETWORKS[name]
    always = name in FLOAT32_ALWAYS
    compute_dtype = "float32" if always else COMPUTE_DTYPES[precision]
    files = (name,) if spec.published else RECIPES[name].files
    ingredients = {
        "contract": [contract.REVISION, asdict(spec)],
        # the resolved shapes and not the sizes: directories of other sizes share what does not depend on them
        "shapes": resolve_shapes(spec, sizes),
        "compute_dtype": compute_dtype,
        "opset": OPSET,
        "weights": [_provenance(checkpoint, file) for file in files],
        "configs": {} if spec.published else dict(checkpoint.configs),
        "versions": build_versions(),
        "sources": _source_hash(),
    }
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
    tolerance = TOLERANCES["fp32" if always else precision][name]
    return NetworkPlan(spec, sizes, compute_dtype, tolerance, key)


def resolve_shapes(spec: NetworkSpec, sizes: Sizes) -> dict[str, tuple[int | str, ...]]:
    """Shape of every tensor of a network; dynamic dimensions stay names."""
    return {tensor.name: sizes.resolve(tensor.shape) for tensor in (*spec.inputs, *spec.outputs)}


def _provenance(checkpoint: Checkpoint, file: str) -> Mapping[str, Any]:
    return checkpoint.provenance[checkpoint.path(file).relative_to(checkpoint.folder).as_posix()]


@cache
def build_versions() -> dict[str, str]:
    """Versions of the software that shapes the files."""
    packages = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
    return {"dispose_rt": dispose_rt.__version__, **{name: version(name) for name in packages}}


@cache
def _source_hash() -> str:
    """Hash of the sources that shape the files: a changed network is a changed build."""
    folder = Path(__file__).parent
    shaping = [*folder.glob("networks/*.py"), *(folder / name for name in ("checkpoints.py", "onnx_export.py"))]
    digest = hashlib.sha256()
    for path in sorted(shaping):
        digest.update(path.read_bytes())
    return digest.hexdigest()

"""The plan of one network's build, and the key that tells whether it has been built already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

import dispose_rt
from dispose_rt import contract
from dispose_rt.contract import NETWORKS, NetworkSpec, Sizes
from dispose_rt.engines.backends import aotinductor_package, tensorrt_flavour
from dispose_rt.engines.backends.tensorrt_flavour import FLAVOURS, tensorrt_version
from dispose_rt.engines.manifest import COMPUTE_DTYPES
from dispose_rt.errors import InputError

from ..checkpoints import Weights
from ..compile.precision import FLOAT32_ALWAYS
from ..compile.verify import TOLERANCES
from ..networks.cmp import build_cmp_flow_decoder, build_cmp_image_encoder
from ..networks.controlnet import build_controlnet
from ..networks.dift import build_dift
from ..networks.image_encoder import build_image_encoder
from ..networks.motion_encoder import build_motion_encoder
from ..networks.point_encoder import build_point_encoder
from ..networks.pose_net import build_pose_net
from ..networks.unet import build_unet
from ..networks.vae_decoder import build_vae_decoder
from ..networks.vae_encoder import build_vae_encoder

SUFFIXES = {"onnxruntime": ".onnx", "tensorrt_rtx": ".engine", "tensorrt": ".engine", "aotinductor": ".pt2"}
"""Suffix of a network's file by backend."""


@dataclass(frozen=True)
class BuildTarget:
    """The target of a directory's build.

    Attributes:
        backend: one of manifest.BACKENDS.
        precision: one of manifest.PRECISIONS.
        devices: compute capabilities such as "sm_89", or "cpu"; empty for any device that the backend supports.
        workspace_mib: most scratch memory of a layer, in MiB; None leaves the limit to TensorRT.
    """

    backend: str = "onnxruntime"
    precision: str = "fp32"
    devices: tuple[str, ...] = ()
    workspace_mib: int | None = None


@dataclass(frozen=True)
class NetworkPlan:
    """One network to build.

    Attributes:
        spec: its contract.
        sizes: resolves the contract's symbols.
        compute_dtype: dtype of its parameters and of tensors marked "compute".
        tolerance: largest relative error against PyTorch in float32.
        backend: opens the file. AOTInductor leaves networks that are published as ONNX files to ONNX Runtime.
        devices: see BuildTarget.
        workspace_mib: see BuildTarget.
        build_key: hash of all ingredients of the file.
    """

    spec: NetworkSpec
    sizes: Sizes
    compute_dtype: str
    tolerance: float
    backend: str
    devices: tuple[str, ...]
    workspace_mib: int | None
    build_key: str

    @property
    def file_name(self) -> str:
        """Name of the file that the backend opens."""
        return self.spec.name + SUFFIXES[self.backend]


_MOTION_PREFIX = "controlnet_cond_embedding."
_POINT_PREFIX = "point_adapter."


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _build_controlnet(weights: Weights) -> nn.Module:
    elsewhere = (_MOTION_PREFIX, _POINT_PREFIX)
    tensors = {name: tensor for name, tensor in weights.tensors("controlnet").items() if not name.startswith(elsewhere)}
    return build_controlnet(weights.configs["svd_unet"], tensors)


@dataclass(frozen=True)
class Recipe:
    """The builder of a network, and the files of the checkpoint that it reads."""

    build: Callable[[Weights], nn.Module]
    files: tuple[str, ...]


RECIPES: Mapping[str, Recipe] = {
    "dift": Recipe(build_dift, ("sd15_unet", "sd15_vae", "sd15_text_encoder", "sd15_vocabulary", "sd15_merges")),
    "cmp_image_encoder": Recipe(build_cmp_image_encoder, ("cmp",)),
    "cmp_flow_decoder": Recipe(build_cmp_flow_decoder, ("cmp",)),
    "image_encoder": Recipe(build_image_encoder, ("image_encoder",)),
    "vae_encoder": Recipe(build_vae_encoder, ("svd_vae",)),
    "pose_net": Recipe(lambda weights: build_pose_net(weights.tensors("pose_net")), ("mimicmotion",)),
    "motion_encoder": Recipe(
        lambda weights: build_motion_encoder(_below(weights.tensors("controlnet"), _MOTION_PREFIX)), ("dispose",)
    ),
    "point_encoder": Recipe(
        lambda weights: build_point_encoder(_below(weights.tensors("controlnet"), _POINT_PREFIX)), ("dispose",)
    ),
    "controlnet": Recipe(_build_controlnet, ("dispose",)),
    "unet": Recipe(lambda weights: build_unet(weights.configs["svd_unet"], weights.tensors("unet")), ("mimicmotion",)),
    "vae_decoder": Recipe(build_vae_decoder, ("svd_vae",)),
}
"""Recipes of all networks that are not published as ONNX files."""


def plan_network(name: str, weights: Weights, sizes: Sizes, target: BuildTarget) -> NetworkPlan:
    """Plan one network of the contract.

    Raises:
        EngineError: the backend's compiler is not installed.
    """
    spec = NETWORKS[name]
    always = name in FLOAT32_ALWAYS
    compute_dtype = "float32" if always else COMPUTE_DTYPES[target.precision]
    uncompiled = target.backend == "aotinductor" and spec.published
    backend = "onnxruntime" if uncompiled else target.backend
    devices = target.devices if backend != "onnxruntime" else ()
    files = (name,) if spec.published else RECIPES[name].files
    ingredients: dict[str, object] = {
        "contract": [contract.REVISION, asdict(spec)],
        # the resolved shapes and not the sizes: directories of other sizes share what does not depend on them
        "shapes": resolve_shapes(spec, sizes),
        "compute_dtype": compute_dtype,
        "weights": [weights.fingerprint(file) for file in files],
        "configs": {} if spec.published else dict(weights.configs),
        "versions": build_versions(),
        "backend": [backend, backend_versions(backend), devices],
        "sources": _source_hash(backend),
    }
    if target.workspace_mib is not None:  # absent otherwise: directories that were built without stay up to date
        ingredients["workspace_mib"] = target.workspace_mib
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
    tolerance = TOLERANCES["fp32" if always else target.precision][name]
    return NetworkPlan(spec, sizes, compute_dtype, tolerance, backend, devices, target.workspace_mib, key)


def resolve_shapes(spec: NetworkSpec, sizes: Sizes) -> dict[str, tuple[int | str, ...]]:
    """Return the shape of every tensor of a network; dynamic dimensions stay names."""
    return {tensor.name: sizes.resolve(tensor.shape) for tensor in (*spec.inputs, *spec.outputs)}


@cache
def build_versions() -> dict[str, str]:
    """Return the versions of the software that determines the files of every backend."""
    packages = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
    return {"dispose_rt": dispose_rt.__version__, **{name: version(name) for name in packages}}


def backend_versions(backend: str) -> dict[str, str]:
    """Return the version of a backend's compiler where it is a package of its own.

    Raises:
        EngineError: it is not installed.
    """
    if backend not in FLAVOURS:
        return {}
    return {backend: tensorrt_version(backend)}


_TENSORRT_SOURCES = ("compile/trace.py", "compile/graph_passes.py", "compile/tensorrt.py")
_SOURCES = {
    "onnxruntime": ("compile/trace.py", "compile/graph_passes.py"),
    "tensorrt_rtx": _TENSORRT_SOURCES,
    "tensorrt": _TENSORRT_SOURCES,
    "aotinductor": ("compile/trace.py", "compile/aotinductor.py"),
}
_RUNTIME_SOURCES = {"tensorrt_rtx": tensorrt_flavour, "tensorrt": tensorrt_flavour, "aotinductor": aotinductor_package}


@cache
def _source_hash(backend: str) -> str:
    """Return a hash of the sources that determine the files: a changed network is built again."""
    folder = Path(__file__).parents[1]
    names = ("checkpoints.py", "weight_files.py", "compile/precision.py", *_SOURCES[backend])
    digest = hashlib.sha256()
    paths = sorted([*folder.glob("networks/*.py"), *(folder / name for name in names)])
    if backend in _RUNTIME_SOURCES:
        paths.append(Path(str(_RUNTIME_SOURCES[backend].__file__)))
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check_output(output: Path) -> None:
    """Refuse a path that cannot become a directory, before weights are opened.

    Raises:
        InputError: it is a file, or lies below one.
    """
    existing = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is a file, so {output} can be no engine directory; pass another --output")

"""Seeded random weights in place of the published files: for latency work, and for building without a download.

Nothing is written to disk: tensors are drawn on their device when a network asks for its component.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from dispose_rt import puppet
from dispose_rt.errors import InputError

from ..checkpoints import COMPONENTS, FILES, PROMPT_TOKENS, Config, Tensors, Weights
from ..compile.precision import apply_precision
from .configs import SCALES, configs_of
from .shapes import STORED_DTYPES, tensor_shapes
from .toy_pose_networks import DETECTOR_FILE, ESTIMATOR_FILE, build_detector, build_estimator
from .toy_weights import fixed_tensor, shape_normals

_POSE_NETWORKS = {
    "person_detector": (DETECTOR_FILE, build_detector),
    "pose_estimator": (ESTIMATOR_FILE, build_estimator),
}


class RandomWeights(Weights):
    """Weights with the published names, shapes and dtypes, whose values keep the variance of what flows through.

    Person detector and pose estimator are stand-ins at every scale: graphs with the published inputs and outputs, but
    with little work inside, so their run time says nothing about the published ones.

    Args:
        scale: "full" for the published widths, "toy" for those of the toy checkpoint (without the lanes that carry
            a picture through it: see `toy_weights`).
        seed: the same seed gives the same tensors on the same kind of device; 0 or more.
        device: device of the tensors.

    Raises:
        InputError: the scale is unknown.
    """

    def __init__(self, scale: str = "full", seed: int = 0, device: str | torch.device = "cpu") -> None:
        if scale not in SCALES:
            raise InputError(f"the scale of random weights is {scale!r}; choose from {', '.join(SCALES)}")
        self.scale = scale
        self.seed = seed
        self.device = torch.device(device)

    @property
    def configs(self) -> Mapping[str, Config]:
        return configs_of(self.scale)

    def tensors(self, component: str) -> Tensors:
        """Draw all tensors of a component, in the dtype that the published file stores."""
        part = COMPONENTS[component]
        dtype = STORED_DTYPES[part.file]
        shapes = tensor_shapes(part.file, self.configs)
        # a prefix belongs to one component of its file; the component without one has the whole file
        mine = {name: shape for name, shape in shapes.items() if name.startswith(part.prefix)}
        return {
            name.removeprefix(part.prefix): draw_tensor(name, shape, dtype, self.seed, self.device)
            for name, shape in mine.items()
        }

    def source(self, component: str) -> str:
        return f"random weights ({self.scale}, seed {self.seed}) of {component}"

    def tokenize(self, prompt: str) -> Tensor:
        """One made-up token per word, between the first and last but one of the vocabulary as start and end."""
        vocabulary = int(self.configs["sd15_text_encoder"]["vocab_size"])
        start, end = vocabulary - 2, vocabulary - 1
        words = [zlib.crc32(word.encode()) % start for word in prompt.split()][: PROMPT_TOKENS - 2]
        padding = [end] * (PROMPT_TOKENS - 1 - len(words))
        return torch.tensor([[start, *words, *padding]], dtype=torch.int64, device=self.device)

    def fingerprint(self, file: str) -> Mapping[str, Any]:
        return {"random": self.scale, "seed": self.seed, "source": _source_hash()}

    @property
    def provenance(self) -> Mapping[str, Mapping[str, Any]]:
        return {name: self.fingerprint(name) for name in FILES}

    def published_file(self, name: str, scratch: Path) -> Path:
        """Write the stand-in of a network that is published as an ONNX file into `scratch`, named as published."""
        file_name, build = _POSE_NETWORKS[name]
        onnx.save(build(), scratch / file_name)
        return scratch / file_name


def draw_tensor(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int, device: str | torch.device = "cpu"
) -> Tensor:
    """Draw one published tensor.

    Args:
        name: its name in its file, prefixes included.
        shape: its shape.
        dtype: that the file stores floating-point tensors in; counters and positions are int64.
        seed: the same seed and name give the same values on the same kind of device.
        device: where they are drawn.
    """
    tensor = fixed_tensor(name, shape)
    if tensor is None:
        # the generator of the CPU reads 32 bits of its seed
        stream = torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        tensor = shape_normals(name, torch.randn(shape, generator=stream, device=device))
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


@cache
def _source_hash() -> str:
    """Hash of the sources that decide the values, beside scale and seed."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(puppet.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def random_module(
    network: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, scale: str = "full"
) -> nn.Module:
    """Make one network with random weights, drawn on its device.

    Args:
        network: a key of `contract.NETWORKS` that is not published as an ONNX file.
        device: device of its parameters.
        dtype: dtype that it computes in, except the parts that `precision` keeps in float32.
        scale: widths, see RandomWeights.

    Returns:
        The module in evaluation mode, with the contract's inputs in order as arguments.
    """
    from ..builds.plan import RECIPES

    module = RECIPES[network].build(RandomWeights(scale, device=device)).eval().requires_grad_(False)
    return apply_precision(module, network, str(dtype).removeprefix("torch."))

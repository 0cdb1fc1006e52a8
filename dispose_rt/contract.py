"""The one place that knows every network: its name, its tensors, their dtypes and their symbolic shapes.

The exporter derives sample inputs, ONNX names and dynamic axes from here; the manifest stores the sizes that resolve
the symbols; the runtime checks every call against it. One name for one thing: contract key = manifest key = file stem.

A shape is a tuple of integers and expressions over symbols, e.g. ("frames", "c0", "height/8", "width/8").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from .errors import InputError

REVISION = 1
"""Revision of the contract. Engines built for another revision are refused."""

POSE_LEVELS = 4
RESIDUALS = 13
DIFT_ENSEMBLE = 8
CMP_SIZE_PX = 384
CLIP_SIZE_PX = 224

Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, symbolic shape and dtype, "float32" or "compute" (the precision of the engine)."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str = "float32"

    def resolve_dtype(self, compute_dtype: str) -> str:
        """Return the name of the dtype in a network that computes in `compute_dtype`."""
        return compute_dtype if self.dtype == "compute" else self.dtype


@dataclass(frozen=True)
class NetworkSpec:
    """One network. The file of a `published` network is used as its authors published it."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    published: bool = False

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Dynamic symbols in order of appearance (no published network has one that we rely on)."""
        seen: dict[str, None] = {}
        for tensor in self.inputs:
            for dim in tensor.shape:
                if isinstance(dim, str) and dim in DYNAMIC:
                    seen[dim] = None
        return tuple(seen)


@dataclass(frozen=True)
class Sizes:
    """Values of the contract's symbols for one engine directory.

    Attributes:
        width, height: output size in pixels; multiples of 64.
        tile: frames that the denoiser processes at once, including the reference slot; >= 2.
        chunk: largest number of frames that the VAE decoder processes at once; >= 1.
        channels: UNet channels per level (`block_out_channels`).
        embed: width of the CLIP image embedding (`cross_attention_dim`).
        dift: channels of the DIFT feature map.
        points: largest number of joint groups that the point encoder processes at once.
    """

    width: int
    height: int
    tile: int = 16
    chunk: int = 8
    channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    embed: int = 1024
    dift: int = 1280
    points: int = 256

    def __post_init__(self) -> None:
        problems = []
        for name in ("width", "height"):
            value = getattr(self, name)
            if value < 64 or value % 64:
                problems.append(f"{name} is {value}; it must be a positive multiple of 64")
        if self.tile < 2:
            problems.append(f"tile is {self.tile}; it must be at least 2 (the reference slot and one frame)")
        if self.chunk < 1:
            problems.append(f"chunk is {self.chunk}; it must be at least 1")
        if problems:
            raise InputError("unusable engine size: " + "; ".join(problems))

    def symbols(self) -> dict[str, int]:
        """Return static symbols and their values."""
        table = {k: v for k, v in asdict(self).items() if isinstance(v, int) and k not in ("chunk", "points")}
        table |= {f"c{level}": c for level, c in enumerate(self.channels)}
        return table

    def limit(self, symbol: str) -> int:
        """Return the largest value of a dynamic symbol."""
        return {"frames": self.tile, "chunk": self.chunk, "points": self.points}[symbol]

    def resolve(self, shape: tuple[Dim, ...], dynamic: Mapping[str, int] | None = None) -> tuple[int | str, ...]:
        """Replace symbols by numbers. A dynamic symbol that `dynamic` does not give stays a name."""
        table = self.symbols() | dict(dynamic or {})
        return tuple(dim if isinstance(dim, int) else _evaluate(dim, table) for dim in shape)


def _evaluate(expression: str, table: Mapping[str, int]) -> int | str:
    """Evaluate "symbol", "symbol/8" or "2*symbol"."""
    factor, _, rest = expression.rpartition("*")
    symbol, _, divisor = rest.partition("/")
    if symbol not in table:
        return expression
    value = table[symbol] * (int(factor) if factor else 1)
    if divisor and value % int(divisor):
        raise InputError(f"{symbol} = {table[symbol]} is not divisible by {divisor}")
    return value // int(divisor) if divisor else value


#: dynamic symbols: at run time anything from 1 to Sizes.limit()
DYNAMIC = MappingProxyType(
    {
        "frames": "frames of a per-frame network, in one call",
        "chunk": "frames of one VAE decoder call",
        "points": "groups of coincident joints of one point encoder call",
    }
)

_LATENT = ("height/8", "width/8")
_FLOW = (2, "height", "width")
_POINT_GRIDS = (
    ("height/16", "width/16"),
    ("height/32", "width/32"),
    ("height/64", "width/64"),
    ("height/64", "width/64"),
)
#: (channel symbol, spatial divisor) of the 12 residuals of the down blocks and the one of the mid block
_RESIDUAL_LEVELS = (
    *[("c0", 8)] * 3,
    ("c0", 16),
    *[("c1", 16)] * 2,
    ("c1", 32),
    *[("c2", 32)] * 2,
    ("c2", 64),
    *[("c3", 64)] * 3,
)
RESIDUAL_MULTIPLICITY = (4, 4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1)
"""Number of times that the reference adds each residual to its skip connection; folded into the 1x1 convolutions."""


def _residuals() -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(f"residual_{i}", ("2*tile", c, f"height/{d}", f"width/{d}"), "compute")
        for i, (c, d) in enumerate(_RESIDUAL_LEVELS)
    )


def _step_inputs() -> tuple[TensorSpec, ...]:
    """Inputs of both denoising networks. The guidance halves are laid out inside the graphs."""
    return (
        TensorSpec("latents", ("tile", 4, *_LATENT)),  # already scaled for the timestep
        TensorSpec("image_latents", (1, 4, *_LATENT)),
        TensorSpec("timestep", (1,)),
        TensorSpec("image_embeds", (1, 1, "embed")),
        TensorSpec("added_time_ids", (1, 3)),
    )


_SPECS = (
    NetworkSpec(
        "person_detector",
        (TensorSpec("images", (1, 3, 640, 640)),),
        (TensorSpec("output", (1, 8400, 85)),),
        published=True,
    ),
    NetworkSpec(
        "pose_estimator",
        (TensorSpec("input", (1, 3, 384, 288)),),
        (TensorSpec("simcc_x", (1, 133, 576)), TensorSpec("simcc_y", (1, 133, 768))),
        published=True,
    ),
    NetworkSpec(
        "dift",
        (
            TensorSpec("image", (1, 3, "height", "width")),  # -1..1
            TensorSpec("posterior_noise", (DIFT_ENSEMBLE, 4, *_LATENT)),
            TensorSpec("noise", (DIFT_ENSEMBLE, 4, *_LATENT)),
        ),
        (TensorSpec("features", (1, "dift", "height/16", "width/16")),),
    ),
    NetworkSpec(
        "cmp_image_encoder",
        (TensorSpec("image", (1, 3, CMP_SIZE_PX, CMP_SIZE_PX)),),  # -1..1
        (
            TensorSpec("image_features", (1, 256, 48, 48), "compute"),
            TensorSpec("skip_features_4", (1, 128, 96, 96), "compute"),  # behind their skip convolution: image only
            TensorSpec("skip_features_2", (1, 32, 192, 192), "compute"),
        ),
    ),
    NetworkSpec(
        "cmp_flow_decoder",
        (
            TensorSpec("image_features", (1, 256, 48, 48), "compute"),
            TensorSpec("skip_features_4", (1, 128, 96, 96), "compute"),
            TensorSpec("skip_features_2", (1, 32, 192, 192), "compute"),
            TensorSpec("sparse_flow", ("frames", 2, CMP_SIZE_PX, CMP_SIZE_PX)),
            TensorSpec("mask", ("frames", 2, CMP_SIZE_PX, CMP_SIZE_PX)),
        ),
        (TensorSpec("flow", ("frames", 2, CMP_SIZE_PX, CMP_SIZE_PX)),),  # pixels of the 384 x 384 image
    ),
    NetworkSpec(
        "image_encoder",
        (TensorSpec("pixel_values", (1, 3, CLIP_SIZE_PX, CLIP_SIZE_PX)),),
        (TensorSpec("image_embeds", (1, 1, "embed")),),
    ),
    NetworkSpec(
        "vae_encoder",
        (TensorSpec("image", (1, 3, "height", "width")),),  # -1..1
        (TensorSpec("latents", (1, 4, *_LATENT)),),  # mode of the posterior, not scaled
    ),
    NetworkSpec(
        "pose_net",
        (TensorSpec("pose_images", ("frames", 3, "height", "width")),),  # -1..1
        (TensorSpec("pose_latents", ("frames", "c0", *_LATENT), "compute"),),
    ),
    NetworkSpec(
        "motion_encoder",
        (TensorSpec("dense_flow", ("frames", *_FLOW)), TensorSpec("trajectory_flow", ("frames", *_FLOW))),
        (TensorSpec("motion_features", ("frames", "c0", *_LATENT), "compute"),),
    ),
    NetworkSpec(
        "point_encoder",
        (TensorSpec("embeddings", ("points", "dift")),),
        tuple(TensorSpec(f"point_features_{i}", ("points", f"c{i}"), "compute") for i in range(POSE_LEVELS)),
    ),
    NetworkSpec(
        "controlnet",
        (
            *_step_inputs(),
            TensorSpec("motion_features", ("tile", "c0", *_LATENT), "compute"),
            *(
                TensorSpec(f"point_features_{i}", ("tile", f"c{i}", *grid), "compute")
                for i, grid in enumerate(_POINT_GRIDS)
            ),
        ),
        _residuals(),
    ),
    NetworkSpec(
        "unet",
        (*_step_inputs(), TensorSpec("pose_latents", ("tile", "c0", *_LATENT), "compute"), *_residuals()),
        (TensorSpec("noise_pred", (2, "tile", 4, *_LATENT)),),  # row 0 unconditional, row 1 conditional
    ),
    NetworkSpec(
        "vae_decoder",
        (TensorSpec("latents", ("chunk", 4, *_LATENT)),),  # of the sampler: the scaling factor is undone inside
        (TensorSpec("frames", ("chunk", 3, "height", "width")),),  # about -1..1, not clamped
    ),
)

NETWORKS: Mapping[str, NetworkSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every network by name, in the order in which a run first needs them."""


@dataclass(frozen=True)
class SchedulerConstants:
    """The constants of SVD's published `scheduler/scheduler_config.json` that are used here."""

    sigma_min: float = 0.002
    sigma_max: float = 700.0
    prediction_type: str = "v_prediction"

    def __post_init__(self) -> None:
        if self.prediction_type != "v_prediction":
            raise InputError(f"prediction type {self.prediction_type!r} is not supported; expected 'v_prediction'")
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(f"sigmas {self.sigma_min}..{self.sigma_max} are not a positive, rising range")

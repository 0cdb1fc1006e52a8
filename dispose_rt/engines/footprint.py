"""Device memory of a run: what each network takes, which ones are loaded in which stage, and the peak of each stage.

Pure arithmetic on the manifest. The runtime loads and closes engines by it, preflight refuses by it, and `dispose-rt
doctor --plan` prints it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from ..contract import DYNAMIC, NETWORKS, Sizes, TensorSpec
from ..device import DTYPE_BYTES
from .manifest import Manifest, NetworkRecord

STAGES: Mapping[str, tuple[str, ...]] = {
    "pose": ("person_detector", "pose_estimator"),
    "motion": ("cmp_image_encoder", "cmp_flow_decoder", "motion_encoder"),
    "appearance": ("dift", "point_encoder"),
    "conditions": ("pose_net", "image_encoder", "vae_encoder"),
    "denoise": ("controlnet", "unet"),
    "decode": ("vae_decoder",),
}
"""The networks that each stage runs."""

RECOMPUTED = ("cmp_image_encoder", "cmp_flow_decoder", "motion_encoder", "pose_net")
"""Networks that run while denoising as well, where the conditions of a clip are recomputed."""

LENDERS = {"unet": "controlnet", "cmp_flow_decoder": "cmp_image_encoder"}
"""Networks that read tensors of another one where it is loaded, so that both are closed together."""

RESIDENCIES: Mapping[str, frozenset[str]] = {
    "all": frozenset(),
    "once": frozenset({*STAGES["pose"], *STAGES["appearance"], "image_encoder", "vae_encoder"}),
    "stages": frozenset(NETWORKS),
}
"""What is closed behind the last stage that needs it: nothing, the networks that a run needs once, or every network."""

MARGIN_SHARE = 0.03
"""Share of the memory that is left where engines are closed instead: for captured graphs, kernels' code that is loaded
late, contexts, fragmentation."""

_CONTROLS = {"controlnet": ("motion", "points"), "dift": ("points",), "point_encoder": ("points",)}
_CONTROLS |= dict.fromkeys(STAGES["motion"], ("motion",))


@dataclass(frozen=True)
class Footprint:
    """Device memory that one network takes, in bytes.

    Attributes:
        weights_bytes: its engine's file, which is on the device as long as it is loaded.
        tensor_bytes: its inputs and outputs at their largest shapes.
        lent_bytes: those of them that the ControlNet lends the UNet when both are loaded.
        scratch_bytes: what a run takes beside both at the largest shapes. TensorRT's engines share one block, which
            stays; AOTInductor's allocate while they run.
        is_measured: whether `scratch_bytes` is the compiler's or a measurement, and not an estimate.
    """

    weights_bytes: int
    tensor_bytes: int
    lent_bytes: int
    scratch_bytes: int
    is_measured: bool


def footprints(manifest: Manifest) -> dict[str, Footprint]:
    """Return what every network takes of the device of the directory's backend; nothing for those on the CPU."""
    on_cpu = manifest.backend == "onnxruntime" or "cpu" in manifest.targets
    return {
        name: Footprint(0, 0, 0, 0, True)
        if on_cpu or record.backend == "onnxruntime"
        else _footprint(name, record, manifest.sizes)
        for name, record in manifest.networks.items()
    }


def extrapolate(manifest: Manifest, sizes: Sizes) -> dict[str, Footprint]:
    """Return what every network would take at other sizes: weights stay, the rest grows as in `estimate_scratch`.

    Args:
        manifest: a directory, on the GPU, whose figures are the starting point.
        sizes: the other sizes, of networks of the same widths.
    """
    scaled = {}
    for name, record in manifest.networks.items():
        recorded = record.scratch_bytes
        if recorded is not None:
            before, after = (estimate_scratch(name, one, record.compute_dtype) for one in (manifest.sizes, sizes))
            recorded = int(recorded * after / before)
        scaled[name] = replace(record, scratch_bytes=recorded)
    return footprints(replace(manifest, sizes=sizes, networks=scaled))


def _footprint(name: str, record: NetworkRecord, sizes: Sizes) -> Footprint:
    weights_bytes = sum(file.size_bytes for file in record.files)
    scratch_bytes = record.scratch_bytes
    if scratch_bytes is None:
        scratch_bytes = estimate_scratch(name, sizes, record.compute_dtype)
    own, lent = _tensors(name), _tensors("controlnet") if name == "unet" else {}
    tensor_bytes = {one: _tensor_bytes(tensor, sizes, record.compute_dtype) for one, tensor in own.items()}
    lent_bytes = sum(tensor_bytes[one] for one in own.keys() & lent.keys())
    is_measured = record.scratch_bytes is not None
    return Footprint(weights_bytes, sum(tensor_bytes.values()), lent_bytes, scratch_bytes, is_measured)


def _tensors(name: str) -> dict[str, TensorSpec]:
    return {tensor.name: tensor for tensor in (*NETWORKS[name].inputs, *NETWORKS[name].outputs)}


def _tensor_bytes(tensor: TensorSpec, sizes: Sizes, compute_dtype: str) -> int:
    shape = sizes.resolve(tensor.shape, {symbol: sizes.limit(symbol) for symbol in DYNAMIC})
    return math.prod(int(dim) for dim in shape) * DTYPE_BYTES[tensor.resolve_dtype(compute_dtype)]


_REFERENCE = Sizes(576, 1024)
_REFERENCE_SCRATCH_BYTES = {
    "person_detector": 200_000_000,
    "pose_estimator": 50_000_000,
    "dift": 900_000_000,
    "cmp_image_encoder": 100_000_000,
    "cmp_flow_decoder": 500_000_000,
    "image_encoder": 50_000_000,
    "vae_encoder": 1_900_000_000,
    "pose_net": 600_000_000,
    "motion_encoder": 600_000_000,
    "point_encoder": 10_000_000,
    "controlnet": 3_780_000_000,
    "unet": 3_780_000_000,
    "vae_decoder": 7_330_000_000,
}
"""Of the published networks at 576x1024, tiles of 16 and chunks of 8 frames, in the precision of an fp16 directory."""

_FIXED_SIZE = ("person_detector", "pose_estimator", "cmp_image_encoder", "cmp_flow_decoder", "image_encoder")


def estimate_scratch(name: str, sizes: Sizes, compute_dtype: str) -> int:
    """Estimate a network's scratch memory from its published size at 576x1024, where no build has recorded it.

    Activations grow in proportion to the picture's area, to the frames of a call, to the network's width, and to the
    bytes of a value.

    Args:
        name: of the network.
        sizes: of its directory.
        compute_dtype: dtype that it computes in.
    """
    area = 1.0
    if name not in _FIXED_SIZE and name != "point_encoder":
        area = sizes.width * sizes.height / (_REFERENCE.width * _REFERENCE.height)
    tile, chunk = sizes.tile / _REFERENCE.tile, sizes.chunk / _REFERENCE.chunk
    frames = dict.fromkeys(("cmp_flow_decoder", "pose_net", "motion_encoder", "controlnet", "unet"), tile)
    frames["vae_decoder"] = chunk
    width = sizes.channels[0] / _REFERENCE.channels[0] if name in ("dift", "controlnet", "unet") else 1.0
    value_bytes = DTYPE_BYTES[compute_dtype] / (4 if name in _FLOAT32_IN_FP16 else 2)
    return int(_REFERENCE_SCRATCH_BYTES[name] * area * frames.get(name, 1.0) * width * value_bytes)


_FLOAT32_IN_FP16 = (*STAGES["pose"], "cmp_image_encoder", "cmp_flow_decoder", "vae_encoder")
"""Networks that compute in float32 in fp16 directories, too."""


def needed_networks(controls: Collection[str]) -> tuple[str, ...]:
    """Return the networks of a run with these control signals, in the order in which stages first need them."""
    return tuple(
        name
        for names in STAGES.values()
        for name in names
        if name not in _CONTROLS or any(one in controls for one in _CONTROLS[name])
    )


def resident_networks(stage: str, residency: str, needed: Collection[str], recomputes: bool = True) -> tuple[str, ...]:
    """Return the networks that are loaded while a stage runs.

    Args:
        stage: one of STAGES.
        residency: one of RESIDENCIES.
        needed: networks of the run.
        recomputes: whether conditions are, or may be, recomputed while denoising.
    """
    order = list(STAGES)
    closed = RESIDENCIES[residency]

    def is_resident(name: str, first: int) -> bool:
        if name not in closed:
            return True
        last = order.index("denoise") if recomputes and name in RECOMPUTED else first
        return first <= order.index(stage) <= last

    return tuple(
        name
        for first, names in enumerate(STAGES.values())
        for name in names
        if name in needed and is_resident(name, first)
    )


@dataclass(frozen=True)
class StagePeak:
    """The most device memory that a stage takes, and the networks that are loaded in it."""

    stage: str
    networks: tuple[str, ...]
    peak_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """How a run uses the device's memory.

    Attributes:
        residency: one of RESIDENCIES.
        chunk: frames that fit to be decoded at once.
        stages: peaks without the clip.
        clip_bytes: the least that the clip takes beside them, from its poses to its pixels.
        available_bytes: what the run may take, engines that are loaded already included.
    """

    residency: str
    chunk: int
    stages: tuple[StagePeak, ...]
    clip_bytes: int
    available_bytes: int

    @property
    def engine_bytes(self) -> int:
        """The highest peak of all stages, without the clip."""
        return max(stage.peak_bytes for stage in self.stages)

    @property
    def peak_bytes(self) -> int:
        """The highest peak of all stages, the clip included."""
        return self.engine_bytes + self.clip_bytes

    @property
    def fits(self) -> bool:
        """Whether the run fits, with a margin."""
        return self.peak_bytes <= self.available_bytes * (1 - MARGIN_SHARE)

    @property
    def free_bytes(self) -> int:
        """What is left for the clip; 0 where even the engines do not fit."""
        return max(self.available_bytes - self.engine_bytes, 0)


def shares_scratch(manifest: Manifest) -> bool:
    """Whether all loaded engines of a directory compute in one block, which stays, as TensorRT's do."""
    return manifest.backend != "aotinductor"


def plan_memory(
    networks: Mapping[str, Footprint],
    sizes: Sizes,
    available_bytes: int,
    *,
    controls: Collection[str],
    chunk: int | None = None,
    clip_bytes: int = 0,
    shares_scratch: bool = True,
) -> MemoryPlan:
    """Decide what is loaded when: as much as fits at once, and the largest decode chunk rather than more engines.

    Closing engines costs the time to load them again and changes no pixel; a shorter chunk changes some. So chunks are
    only shortened where nothing is left to close, and a chunk that the caller chose never is.

    Args:
        networks: see `footprints`.
        sizes: sizes of the engine directory.
        available_bytes: what the run may take, engines of the directory that are loaded already included.
        controls: control signals of the run.
        chunk: frames to decode at once; None for as many as fit.
        clip_bytes: the least that the clip takes.
        shares_scratch: see the function of that name.

    Returns:
        The first plan that fits; where none does, the one that takes least.
    """
    needed = needed_networks(controls)
    lengths = [chunk] if chunk is not None else list(_halves(sizes.chunk))
    options = [*((one, lengths[0]) for one in RESIDENCIES), *(("stages", length) for length in lengths[1:])]
    plans = [
        MemoryPlan(
            residency,
            length,
            tuple(_peaks(_shorten(networks, length, sizes), residency, needed, shares_scratch)),
            clip_bytes,
            available_bytes,
        )
        for residency, length in options
    ]
    if not any(one.weights_bytes for one in networks.values()):  # they are not on the device
        return plans[0]
    return next((plan for plan in plans if plan.fits), plans[-1])


def _halves(length: int) -> Iterator[int]:
    while length:
        yield length
        length //= 2


def _shorten(networks: Mapping[str, Footprint], chunk: int, sizes: Sizes) -> dict[str, Footprint]:
    """Footprints with chunks of a length. Everything in the decoder grows with the frames of a chunk."""
    share, decoder = chunk / sizes.chunk, networks["vae_decoder"]
    tensor_bytes, scratch_bytes = int(decoder.tensor_bytes * share), int(decoder.scratch_bytes * share)
    return {**networks, "vae_decoder": replace(decoder, tensor_bytes=tensor_bytes, scratch_bytes=scratch_bytes)}


def _peaks(
    networks: Mapping[str, Footprint], residency: str, needed: Collection[str], shares_scratch: bool
) -> Iterator[StagePeak]:
    for stage in STAGES:
        loaded = resident_networks(stage, residency, needed)
        running = [name for name in loaded if shares_scratch or name in STAGES[stage] or name in RECOMPUTED]
        scratch_bytes = max((networks[name].scratch_bytes for name in running), default=0)
        yield StagePeak(stage, loaded, scratch_bytes + sum(_resident_bytes(name, networks, loaded) for name in loaded))


def _resident_bytes(name: str, networks: Mapping[str, Footprint], loaded: Collection[str]) -> int:
    """Bytes of a network that is loaded while another one runs."""
    one = networks[name]
    return one.weights_bytes + one.tensor_bytes - (one.lent_bytes if "controlnet" in loaded else 0)


def least_bytes(manifest: Manifest) -> int:
    """Return what a run takes at least: stage by stage, decoding single frames, without a clip or estimates."""
    networks = {
        name: one if one.is_measured else replace(one, scratch_bytes=0) for name, one in footprints(manifest).items()
    }
    plan = plan_memory(networks, manifest.sizes, 0, controls=("motion", "points"), chunk=1)
    return plan.engine_bytes

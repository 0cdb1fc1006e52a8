"""Settings and results of the baseline, with the extrapolation to seconds per frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from dispose_rt.contract import Sizes
from dispose_rt.errors import InputError
from dispose_rt.stages.denoise.tiles import Tile, plan_tiles

PUBLISHED = Sizes(576, 1024)
TOY = Sizes(64, 128, tile=4, channels=(32, 64, 128, 128), embed=48, dift=96)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PAPER_S_PER_FRAME = {"DisPose": 2.36, "MimicMotion": 1.61}
"""Appendix G of the paper, on a GPU that it does not name."""

DISPOSE_STAGES = ("dift", "trajectories", "cmp")
"""Stages that plain MimicMotion does not have."""


@dataclass(frozen=True)
class BaselineSetting:
    """Settings of a measurement.

    Attributes:
        device: "cpu" or "cuda".
        scale: widths of the networks, "full" or "toy".
        sizes: size and tile length.
        precision: "fp32", "fp16" or "bf16"; CMP stays in float32, where the published code ends up as well.
        frames: length of the clip, the reference included; at least a tile.
        overlap: frames by which tiles overlap.
        steps: of the whole run, for the extrapolation.
        steps_measured: steps that are run and timed, after one that is not.
        guidance_scale: above 1.
        budget_s: when it is over, steps that are not needed for a number are left out, and so is what is optional.
    """

    device: str
    scale: str = "full"
    sizes: Sizes = PUBLISHED
    precision: str = "fp16"
    frames: int = 76
    overlap: int = 6
    steps: int = 25
    steps_measured: int = 3
    guidance_scale: float = 2.0
    budget_s: float = 1800.0

    def __post_init__(self) -> None:
        problems = []
        if self.device == "cuda" and not torch.cuda.is_available():
            problems.append("the device is cuda, but PyTorch finds no GPU; use --device cpu --scale toy")
        if self.frames < self.sizes.tile:
            problems.append(f"the clip has {self.frames} frames; the published method needs a tile, {self.sizes.tile}")
        if not 1 <= self.overlap <= self.sizes.tile - 2:
            problems.append(f"overlap is {self.overlap}; it must lie in 1..{self.sizes.tile - 2}")
        if not 1 <= self.steps_measured < self.steps:
            problems.append(f"{self.steps_measured} steps are measured; it must be 1..{self.steps - 1}")
        if problems:
            raise InputError("this baseline cannot run: " + "; ".join(problems))

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def new_frames_per_tile(self) -> int:
        return self.sizes.tile - self.overlap

    def tiles(self) -> tuple[Tile, ...]:
        return plan_tiles(self.frames, self.sizes.tile, self.overlap)


@dataclass(frozen=True)
class StepTimes:
    """Times of the sampling loop: medians over all measured tiles and steps.

    Attributes:
        tile_s: one tile of one step.
        spread_s: longest minus shortest.
        tiles_measured: how many.
        parts_s: what lies within a tile step, by name.
        per_step_s: what every step does once, whatever the number of tiles: scaling, guidance and the Euler step.
    """

    tile_s: float
    spread_s: float
    tiles_measured: int
    parts_s: Mapping[str, float]
    per_step_s: float


@dataclass
class Baseline:
    """Results of a measurement.

    Attributes:
        setting: as asked for.
        device_name: the GPU, or CPU.
        stages_s: seconds of everything that runs once per clip, by name, for the whole clip, "decode" included.
        step: with all that DisPose adds.
        plain_step: the UNet alone, plain MimicMotion.
        autocast_step: like `step`, under autocast; None where there is nothing to cast, or no time was left.
        memory_bytes: most that tensors took on the GPU during `step`; 0 on the CPU.
        finite: whether the latents were, at the end of the measured steps.
    """

    setting: BaselineSetting
    device_name: str
    stages_s: dict[str, float] = field(default_factory=dict)
    step: StepTimes | None = None
    plain_step: StepTimes | None = None
    autocast_step: StepTimes | None = None
    memory_bytes: int = 0
    finite: bool = False

    def s_per_frame(self, step: StepTimes | None, *, plain: bool = False) -> float | None:
        """Extrapolated seconds per new frame of a run of `setting.steps` steps.

        Args:
            step: times of the loop.
            plain: leave out the stages that plain MimicMotion does not have.
        """
        if step is None:
            return None
        new_frames = self.setting.frames - 1  # the reference is dropped
        once_s = sum(seconds for name, seconds in self.stages_s.items() if not (plain and name in DISPOSE_STAGES))
        loop_s = step.tile_s / self.setting.new_frames_per_tile + step.per_step_s / new_frames
        return self.setting.steps * loop_s + once_s / new_frames

    def extrapolated(self) -> dict[str, float | None]:
        """Return seconds per frame by method."""
        return {
            "DisPose": self.s_per_frame(self.step),
            "DisPose, autocast": self.s_per_frame(self.autocast_step),
            "MimicMotion": self.s_per_frame(self.plain_step, plain=True),
        }

    @property
    def added_factor(self) -> float | None:
        """Return the extrapolated ratio of DisPose's time per frame to MimicMotion's."""
        ours, plain = self.s_per_frame(self.step), self.s_per_frame(self.plain_step, plain=True)
        return ours / plain if ours and plain else None

    def record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {
            **asdict(self),
            "torch": torch.__version__,
            "tiles": len(self.setting.tiles()),
            "s_per_frame_extrapolated": self.extrapolated(),
            "added_factor_extrapolated": self.added_factor,
            "s_per_frame_paper": PAPER_S_PER_FRAME,
        }

    def __str__(self) -> str:
        return "\n".join([*self._clip_lines(), *self._step_lines(), *self._frame_lines()])

    def _clip_lines(self) -> list[str]:
        new_frames = self.setting.frames - 1
        return [f"once per clip, {self.setting.frames} frames:"] + [
            f"  {name:<20}{seconds:10.4f} s   {seconds / new_frames:8.4f} s/frame"
            for name, seconds in self.stages_s.items()
        ]

    def _step_lines(self) -> list[str]:
        loops = {"DisPose": self.step, "DisPose, autocast": self.autocast_step, "MimicMotion": self.plain_step}
        lines = [f"per step and tile of {self.setting.sizes.tile} frames:"]
        for name, step in loops.items():
            if step is not None:
                parts = ", ".join(f"{part} {seconds * 1e3:.1f}" for part, seconds in step.parts_s.items())
                lines.append(f"  {name:<20}{step.tile_s * 1e3:10.2f} ms  ({parts}; median of {step.tiles_measured})")
        if self.memory_bytes:
            lines.append(f"  most memory: {self.memory_bytes / 1e9:.1f} GB")
        if not self.finite:
            lines.append("  the latents are not finite: the times hold, the numbers behind them do not")
        return lines

    def _frame_lines(self) -> list[str]:
        setting = self.setting
        lines = [f"extrapolated to {setting.steps} steps and {setting.new_frames_per_tile} new frames per tile:"]
        for name, value in self.extrapolated().items():
            if value is not None:
                paper = self._paper(PAPER_S_PER_FRAME.get(name))
                lines.append(f"  {name:<20}{value:10.4f} s/frame{paper}")
        if self.added_factor is not None:
            paper = self._paper(PAPER_S_PER_FRAME["DisPose"] / PAPER_S_PER_FRAME["MimicMotion"])
            lines.append(f"  {'DisPose/MimicMotion':<20}{self.added_factor:10.2f}        {paper}")
        return lines

    def _paper(self, value: float | None) -> str:
        """Return the paper's number where the same was measured."""
        same = self.setting.scale == "full" and self.setting.sizes == PUBLISHED
        return f"   (paper: {value:.2f})" if same and value else ""

"""Times the published method in eager PyTorch, in its own order of work: the baseline of all comparisons.

    python benchmarks/reference/baseline.py [--json FILE]
    python benchmarks/reference/baseline.py --scale toy --device cpu

Random weights and a made-up dancer; by default the published settings: 576x1024, tiles of 16 frames that overlap by 6,
25 steps, guidance 2, half precision. Not in the times: loading weights, the first run of a network on a GPU, reading
and writing files, and the two networks that find people, which are the same on either side.

Once per clip: drawing and encoding poses, CLIP, the autoencoder, DIFT (both passes, and its feature map enlarged to the
image), a 199 x 199 filter over the trajectories, CMP with its image encoder for every frame. In every step of every
tile: motion encoder, point adapter, ControlNet, and UNet with full cross-attention. The same without what DisPose adds
is plain MimicMotion. Seconds per frame are extrapolated: steps x tile step / new frames per tile, plus the rest of the
clip's time by its frames.

The published code runs under autocast, too, which takes longer. The time without it is the one to compare with; the
other one is printed as well.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from dispose_rt_export.checkpoints import Weights
from dispose_rt_export.synthetic.random_weights import RandomWeights
from torch import Tensor

from benchmarks.reference import stages
from benchmarks.reference.denoising import BaselineConditions, BaselineDenoiser, PartTimer
from benchmarks.reference.networks import load_baseline
from benchmarks.reference.results import DTYPES, PUBLISHED, TOY, Baseline, BaselineSetting, StepTimes
from benchmarks.reference.sample_clip import SampleClip, sample_clip
from dispose_rt.errors import InputError
from dispose_rt.stages.conditions import added_time_ids
from dispose_rt.stages.pose.draw import draw_pose

MOTION_BUCKET = 127
WARM_UP_STEPS = 1
PUBLISHED_FRAMES, TOY_FRAMES = 76, 6
PUBLISHED_OVERLAP, TOY_OVERLAP = 6, 2
PER_TILE, PER_STEP = ("motion", "points", "controlnet", "unet", "accumulate"), ("scale", "euler")

_Result = TypeVar("_Result")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status."""
    arguments = _parse(argv)
    try:
        setting = _setting(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = f"{setting.sizes.width}x{setting.sizes.height}"
    print(f"eager PyTorch {torch.__version__}, {setting.scale}, {size}, {setting.precision}", flush=True)
    result = measure_baseline(setting)
    print(result.device_name)
    print(result)
    if arguments.json:
        part = arguments.json.with_name(f"{arguments.json.name}.part")
        part.write_text(json.dumps(result.record(), indent=1) + "\n")
        part.replace(arguments.json)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", choices=("full", "toy"), default="full", help="widths and size (default: full)")
    parser.add_argument("--precision", choices=DTYPES, default=None, help="default: fp16 on a GPU, else fp32")
    parser.add_argument("--frames", type=int, default=None, help="length of the clip (default: 76, or 6 for toys)")
    parser.add_argument("--steps-measured", type=int, default=3, metavar="N", help="behind one to warm up (default: 3)")
    parser.add_argument(
        "--budget-seconds", type=float, default=1800, help="measure no more than needed after this time"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    return parser.parse_args(argv)


def _setting(arguments: argparse.Namespace) -> BaselineSetting:
    toy = arguments.scale == "toy"
    return BaselineSetting(
        device=arguments.device,
        scale=arguments.scale,
        sizes=TOY if toy else PUBLISHED,
        precision=arguments.precision or ("fp16" if arguments.device == "cuda" else "fp32"),
        frames=arguments.frames or (TOY_FRAMES if toy else PUBLISHED_FRAMES),
        overlap=TOY_OVERLAP if toy else PUBLISHED_OVERLAP,
        steps_measured=arguments.steps_measured,
        budget_s=arguments.budget_seconds,
    )


def measure_baseline(
    setting: BaselineSetting, clip: SampleClip | None = None, weights: Weights | None = None
) -> Baseline:
    """Run the published method and time it.

    Args:
        setting: what to measure.
        clip: image and poses; by default a made-up dancer.
        weights: by default random ones, the same every time.

    Returns:
        Times per stage and per tile step.

    Raises:
        InputError: the clip is of another size or length.
    """
    sizes = setting.sizes
    clip = clip or sample_clip(sizes.width, sizes.height, setting.frames)
    if clip.image.shape != (sizes.height, sizes.width, 3) or len(clip.poses) != setting.frames:
        raise InputError(
            f"the clip has an image {list(clip.image.shape)} and {len(clip.poses)} poses; expected "
            f"[{sizes.height}, {sizes.width}, 3] and {setting.frames}"
        )
    weights = weights or RandomWeights(setting.scale, device=setting.device)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        return _Measurement(setting, clip, weights).run()


class _Measurement:
    """One timed run of the method. Networks are on the device one by one, except the two of the loop."""

    def __init__(self, setting: BaselineSetting, clip: SampleClip, weights: Weights) -> None:
        self._setting, self._clip, self._weights = setting, clip, weights
        self._device, self._on_gpu = setting.device, setting.device == "cuda"
        self._end = time.monotonic() + setting.budget_s
        self._result = Baseline(setting, torch.cuda.get_device_name() if self._on_gpu else "CPU")

    def run(self) -> Baseline:
        sizes = self._setting.sizes
        generator = torch.Generator(self._device).manual_seed(0)
        shape = (1, sizes.tile, 4, sizes.height // 8, sizes.width // 8)
        noise = torch.randn(shape, generator=generator, device=self._device).to(self._setting.dtype)
        self._measure_loop(self._run_stages(), noise)
        # unit noise in place of the latents, which a few steps leave at the start's 700
        latents = noise[0, torch.arange(self._setting.frames, device=self._device) % sizes.tile]
        with self._network("vae_decoder") as decoder:
            self._stage("decode", lambda: stages.decode_to_host(decoder, latents, sizes.chunk))
        return self._result

    def _run_stages(self) -> BaselineConditions:
        """Run all stages before the loop, once per clip."""
        setting, clip, device = self._setting, self._clip, self._device
        height, width, track = setting.sizes.height, setting.sizes.width, clip.track
        drawings = self._stage(
            "pose_drawing", lambda: [draw_pose(pose, height, width) for pose in clip.poses], on_host=True
        )
        noises = stages.draw_dift_noises(height, width, device)
        with self._network("dift") as dift:
            embeddings = self._stage("dift", lambda: stages.embed_joints(dift, clip.image, track, noises, device))
        trajectories = self._stage(
            "trajectories",
            lambda: torch.from_numpy(stages.filter_trajectories(track, height, width)).to(device),
            on_host=True,
        )
        with self._network("cmp_image_encoder") as encoder, self._network("cmp_flow_decoder") as decoder:
            dense = self._stage("cmp", lambda: stages.propagate_motion(encoder, decoder, clip.image, track, device))
        with self._network("image_encoder") as encoder:
            embeds = self._stage("image_encoder", lambda: stages.encode_image(encoder, clip.image, device))
        with self._network("vae_encoder") as encoder:
            latents = self._stage("vae_encoder", lambda: encoder(stages.signed_pixels(clip.image, device)))
        with self._network("pose_net") as encoder:
            batch = setting.sizes.tile
            poses = self._stage("pose_net", lambda: stages.encode_poses(encoder, drawings, device, batch))
        return BaselineConditions(
            track=track,
            embeddings=embeddings.to(setting.dtype),
            dense_flow=dense.to(setting.dtype),
            trajectory_flow=trajectories.to(setting.dtype),
            pose_latents=poses.to(setting.dtype),
            image_latents=latents.to(setting.dtype),
            image_embeds=embeds.to(setting.dtype),
            added_time_ids=torch.from_numpy(added_time_ids(MOTION_BUCKET, 0.0)).to(device),
        )

    def _measure_loop(self, conditions: BaselineConditions, noise: Tensor) -> None:
        setting, result = self._setting, self._result
        with self._network("unet") as unet, self._network("controlnet") as controlnet:
            dispose, plain = (
                BaselineDenoiser(
                    unet,
                    network,
                    self._weights.configs["svd_scheduler"],
                    conditions,
                    setting.tiles(),
                    setting.guidance_scale,
                )
                for network in (controlnet, None)
            )
            if self._on_gpu:
                torch.cuda.reset_peak_memory_stats()
            result.step, latents = self._time_steps(dispose, noise)
            result.memory_bytes = torch.cuda.max_memory_allocated() if self._on_gpu else 0
            result.finite = bool(torch.isfinite(latents).all())
            result.plain_step, _ = self._time_steps(plain, noise)
            if self._on_gpu and setting.precision != "fp32" and self._time_is_left():
                with torch.autocast("cuda", setting.dtype):
                    result.autocast_step, _ = self._time_steps(dispose, noise)

    def _time_steps(self, denoiser: BaselineDenoiser, noise: Tensor) -> tuple[StepTimes, Tensor]:
        """Run the first steps of the schedule; those after the warm-up count, at least one."""
        watch = PartTimer(self._device)
        measured: dict[str, list[float]] = {}
        done = 0

        def after_step(*_: Tensor) -> bool:
            nonlocal done
            done += 1
            seconds = watch.take()
            if done > WARM_UP_STEPS:
                for part, values in seconds.items():
                    measured.setdefault(part, []).extend(values)
            enough = done >= WARM_UP_STEPS + self._setting.steps_measured
            return done <= WARM_UP_STEPS or (self._time_is_left() and not enough)

        latents = denoiser.run(noise, self._setting.steps, watch, after_step)
        return _summarise(measured), latents

    def _time_is_left(self) -> bool:
        return time.monotonic() < self._end

    def _stage(self, name: str, run: Callable[[], _Result], *, on_host: bool = False) -> _Result:
        """Time a stage that runs once per clip; on a GPU it runs twice, since the first run tunes and loads."""
        if self._on_gpu and not on_host:
            run()
        self._wait()
        start = time.perf_counter()
        result = run()
        self._wait()
        self._result.stages_s[name] = time.perf_counter() - start
        return result

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()

    @contextmanager
    def _network(self, name: str) -> Iterator[Any]:
        """Load one network onto the device, and free it after the block."""
        dtype = torch.float32 if name.startswith("cmp_") else self._setting.dtype
        network = load_baseline(name, self._weights, self._device, dtype)
        try:
            yield network
        finally:
            network.to("meta")  # references to the module that remain hold no memory
            self._free_memory()

    def _free_memory(self) -> None:
        gc.collect()
        if self._on_gpu:
            torch.cuda.empty_cache()


def _summarise(measured: Mapping[str, Sequence[float]]) -> StepTimes:
    medians = {part: statistics.median(values) for part, values in measured.items()}
    tiles = measured["tile"]
    return StepTimes(
        tile_s=medians["tile"],
        spread_s=max(tiles) - min(tiles),
        tiles_measured=len(tiles),
        parts_s={part: medians[part] for part in PER_TILE if part in medians},
        per_step_s=sum(medians[part] for part in PER_STEP),
    )


if __name__ == "__main__":
    sys.exit(main())

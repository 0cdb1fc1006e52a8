"""Pictures of every stage of a run, in a folder with a page: to see where a bad result comes from.

Pictures are written as soon as their stage shows them. Memory and the number of pictures do not grow with the clip.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import pictures
from ..errors import InputError
from ..stages.pose import draw_pose
from ..types import JOINTS, U8, Detected, Motion, Pose, StepTrace
from . import drawing
from .folder import PictureFolder
from .points import JointCells

MAX_LIMIT = 200

_STEPS_KEPT = 32
"""Previews of denoising steps that wait for the end, when it is known which are a quarter, half, ... of all."""
_STEPS_SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)


def spread_numbers(count: int, limit: int) -> range:
    """Choose at most `limit` of `count` numbers, evenly: every 1st, 2nd, 4th, ... from 0 on.

    A stream of unknown length can be thinned with it as it goes: what is chosen of a longer one and was there before
    had been chosen before, too.

    Args:
        count: how many there are, 0 or more.
        limit: how many to take at most, above 0.
    """
    step = 1
    while -(-count // step) > limit:
        step *= 2
    return range(0, count, step)


class DebugPictures:
    """An observer for `Animator.run` that draws what every stage does.

    Pass it as `observer`, and call `finish` afterwards, whether the run succeeded or not. Each run needs its own.

    Args:
        folder: where the page (index.html) and its pictures go; created where missing. What an earlier run left there
            is replaced.
        limit: frames of the clip that are shown at most, 1..200. A dozen at 576 x 1024 takes about 100 MB of memory.

    Attributes:
        wants: names of what is observed.

    Raises:
        InputError: limit is out of range.
        OutputError: the folder cannot be written, or holds an index.html that is not ours.
    """

    wants = frozenset({"reference", "driving", "detected", "aligned", "motion_part", "denoise_step", "frames"})

    def __init__(self, folder: str | os.PathLike[str], limit: int = 12) -> None:
        if not 1 <= limit <= MAX_LIMIT:
            raise InputError(f"limit is {limit}; expected 1..{MAX_LIMIT} frames")
        self._folder = PictureFolder(Path(folder))
        self._limit = limit
        self._reference: U8 | None = None
        self._joints: list[list[str]] = []
        self._frames = 0  # of the driving video, as far as is known
        self._driving: dict[int, U8] = {}
        self._flows: dict[str, dict[int, NDArray[np.float16]]] = {"trajectory": {}, "dense": {}}
        self._last_step = -1
        self._decoded = 0
        self._watchers: dict[str, Callable[[Any], None]] = {
            "reference": self._see_reference,
            "driving": self._see_driving,
            "detected": self._see_detected,
            "aligned": self._see_aligned,
            "motion_part": self._see_motion,
            "denoise_step": self._see_step,
            "frames": self._see_frames,
        }

    def __call__(self, name: str, value: Any) -> None:
        """Draw what the run shows; other names than those in `wants` are passed over.

        Raises:
            OutputError: a picture cannot be written.
        """
        if name in self._watchers:
            self._watchers[name](value)

    def finish(
        self,
        summary: Mapping[str, object] | None = None,
        timings: Mapping[str, float] | None = None,
        error: BaseException | str | None = None,
    ) -> Path:
        """Write the page about all that was seen, also of a run that failed.

        Args:
            summary: settings, engines and so on, as names and values; the page begins with them.
            timings: seconds per stage, as in `Animation.timings`.
            error: what ended the run early, or None.

        Returns:
            The path of the page.

        Raises:
            OutputError: it cannot be written.
        """
        self._driving.clear()
        self._draw_flows()
        steps = self._folder.numbers("denoise")
        if steps:
            wanted = (share * self._last_step for share in _STEPS_SHOWN)
            self._folder.keep_only("denoise", {min(steps, key=lambda one: abs(one - place)) for place in wanted})
        message = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
        return self._folder.write_page(summary or {}, timings or {}, message, {"points": self._joints})

    def _shown(self) -> range:
        """Driving frames that have pictures."""
        return spread_numbers(self._frames, self._limit)

    def _see_reference(self, image: U8) -> None:
        self._reference = image
        height, width = image.shape[:2]
        self._folder.show("reference", 0, f"fitted to {width} x {height} px", image, photo=True)

    def _see_driving(self, frame: U8) -> None:
        number = self._frames
        self._frames += 1
        shown = self._shown()
        if number in shown:
            self._folder.keep_only("driving", shown)
            self._driving = {one: kept for one, kept in self._driving.items() if one in shown}
            self._driving[number] = drawing.fit_view(frame)
            self._folder.show("driving", number, f"frame {number}", self._driving[number], photo=True)

    def _see_detected(self, detected: Detected) -> None:
        self._frames = len(detected.frames)
        self._show_reference_pose(detected.reference)
        height, width = detected.frame_size_px
        for number in self._shown():
            picture = self._driving.pop(number, None)
            if picture is None:  # poses that are known from an earlier run come without the frames
                picture = drawing.fit_view(np.full((height, width, 3), 40, np.uint8))
            pose, boxes_px = detected.frames[number], detected.boxes_px[number]
            drawing.draw_boxes(picture, boxes_px, detected.frame_size_px, drawing.WHITE, 2)
            caption = f"frame {number}, {_count(len(boxes_px), 'box')}"
            if number in detected.missing:
                drawing.draw_skeleton(picture, pose, drawing.GREY)
                drawing.draw_banner(picture, "person not found")
                caption += "; person not found, a neighbour's pose stands in"
            else:
                drawing.draw_boxes(picture, pose.boxes_px[:1], detected.frame_size_px, drawing.GREEN, 5)
                drawing.draw_skeleton(picture, pose)
            self._folder.show("detected", number, caption, picture, photo=True)
        self._driving.clear()

    def _show_reference_pose(self, pose: Pose) -> None:
        reference = self._photo()
        picture = drawing.fit_view(reference)
        height, width = reference.shape[:2]
        drawing.draw_boxes(picture, pose.boxes_px[:1], (height, width), drawing.GREEN, 5)
        drawing.draw_skeleton(picture, pose)
        caption = f"{int(pose.visible[0].sum())} of {JOINTS} joints found"
        self._folder.show("reference", 1, caption, picture, photo=True)
        cells = JointCells(reference, pose)
        self._folder.show_legend("points", "joints by name; with a red ring: shares its cell", cells.draw_names())
        for number, (caption, drawn) in enumerate(cells.draw_levels()):
            self._folder.show("points", number, caption, drawn)
        self._joints = cells.table()

    def _photo(self) -> U8:
        if self._reference is None:
            raise InputError('the observer was shown poses before "reference"; show it all of a run, in order')
        return self._reference

    def _see_aligned(self, poses: Sequence[Pose]) -> None:
        reference = self._photo()
        height, width = reference.shape[:2]
        background = drawing.dim(drawing.fit_view(reference))
        drawing.draw_skeleton(background, poses[0], drawing.GREY)
        self._frames = len(poses) - 1
        self._folder.show("poses", 0, "the photo", _pose_picture(poses[0], height, width))
        for number in self._shown():
            pose, picture = poses[number + 1], background.copy()
            drawing.draw_skeleton(picture, pose)
            outside = int((pose.visible[0] & ((pose.joints[0] < 0) | (pose.joints[0] >= 1)).any(axis=1)).sum())
            caption = f"frame {number}" + (f", {_count(outside, 'joint')} outside" if outside else "")
            self._folder.show("aligned", number, caption, picture, photo=True)
            self._folder.show("poses", number + 1, f"frame {number}", _pose_picture(pose, height, width))

    def _see_motion(self, part: tuple[int, Motion]) -> None:
        """Keep the chosen rows until all are there: only then one scale for all of them can be told."""
        first, motion = part
        start = first - 1  # the photo is frame 0 of the clip
        for stage, rows in (("trajectory", motion.trajectory_flow), ("dense", motion.dense_flow)):
            for number in self._shown():
                if start <= number < start + len(rows):
                    with np.errstate(over="ignore"):  # so much motion is drawn like motion that is not finite
                        self._flows[stage][number] = rows[number - start].astype(np.float16)
        if all(len(kept) == len(self._shown()) for kept in self._flows.values()):
            self._draw_flows()

    def _draw_flows(self) -> None:
        for stage, flows in self._flows.items():
            if not flows:
                continue
            scale_px = drawing.choose_flow_scale(list(flows.values()))
            caption = "hue = direction, saturation = length; what is longer than the rim is drawn darker"
            self._folder.show_legend(stage, caption, pictures.draw_flow_wheel(scale_px))
            for number, flow in flows.items():
                longest_px = np.hypot(*np.nan_to_num(flow.astype(np.float64), posinf=0.0, neginf=0.0)).max()
                broken = int((~np.isfinite(flow)).any(axis=0).sum())
                caption = f"frame {number}, up to {longest_px:.3g} px"
                caption += f"; {_count(broken, 'pixel')} not finite" if broken else ""
                self._folder.show(stage, number, caption, drawing.draw_flow(flow, scale_px))
            flows.clear()

    def _see_step(self, trace: StepTrace) -> None:
        if trace.step != self._last_step + 1:
            raise InputError(f"step {trace.step} came after step {self._last_step}; use one DebugPictures per run")
        self._last_step = trace.step
        self._folder.keep_only("denoise", spread_numbers(trace.step, _STEPS_KEPT))
        self._frames = len(trace.latents) - 1  # the photo's own come first
        latents = trace.latents[1 :: self._shown().step]
        finite = np.isfinite(latents)
        caption = f"after step {trace.step + 1}"
        caption += f", standard deviation {latents[finite].std():.3g}" if finite.any() else ""
        caption += "" if finite.all() else f"; {_count(int((~finite).sum()), 'value')} not finite"
        labels = [f"frame {number}" for number in self._shown()]
        sheet = drawing.lay_out_grid(drawing.preview_latents(latents), labels)
        self._folder.show("denoise", trace.step, caption, sheet)

    def _see_frames(self, chunk: U8) -> None:
        shown = self._shown()
        for number, frame in enumerate(chunk, self._decoded):
            if number in shown:
                self._folder.show("frames", number, f"frame {number}: driving, result", frame, photo=True)
                self._folder.put_beside("frames", number, "driving")
        self._decoded += len(chunk)


def _pose_picture(pose: Pose, height: int, width: int) -> U8:
    """What the pose network is given, colours last."""
    return np.ascontiguousarray(draw_pose(pose, height, width).transpose(1, 2, 0))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}{'es' if thing.endswith('x') else 's'}"

"""What the page of `debug_pictures` says about each stage: what is shown, and what to look for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageText:
    """Words about a stage. `layout` is that of `index_page.Section`."""

    title: str
    what: str
    look: str
    layout: str = ""


STAGES = {
    "reference": StageText(
        "The photo",
        "The photo as the networks get it, cut to the shape of the engines, and the person that was found in it.",
        "The person must be whole, upright and sharp. All movement is measured from this skeleton, so one wrong joint "
        "here spoils every frame. Parts that were cut off stay missing: use a photo of the engines' shape, or build "
        "engines of another size.",
        "pairs",
    ),
    "driving": StageText(
        "Driving frames",
        "Frames of the driving video as they were sampled, spread over the clip.",
        "The wrong passage, a wrong rotation or wrong colours come from the video file. Fast movement that jumps from "
        "frame to frame asks for a smaller stride.",
    ),
    "detected": StageText(
        "Detected people",
        "Everybody's box (thin and white), the followed person's box (thick and green) and skeleton. A box around the "
        "whole frame means that the detector found nobody, and the pose network looked at everything.",
        "A box that jumps to another person: cut the video so that one person is in view. A red border: the person "
        "was not found, and a neighbour's pose stands in (grey), which makes the result stand still there. Left and "
        "right swapped, or limbs in the wrong place: the frame is blurred, dark or too small for the pose network.",
    ),
    "aligned": StageText(
        "Aligned skeletons",
        "The driving poses, moved and scaled onto the photo, over the photo's own skeleton in grey.",
        "Body and head should have the size of the grey figure. Too large, too small or shifted: a joint of the photo "
        'is wrong, or the two people do not show the same joints in the same posture: try alignment="robust" '
        "(--alignment robust). Joints filled in by bridge_gaps are drawn here, but not among the detected people. "
        "Joints outside the picture are cut off in the result as well.",
    ),
    "poses": StageText(
        "Drawn poses",
        "Exactly the pictures that the pose network is given; the first one is the photo's own pose.",
        "A limb that is missing here will be invented or vanish in the result. Dim limbs had a low score. Flickering "
        "hands and faces come from points with low scores.",
    ),
    "trajectory": StageText(
        "Trajectory flow",
        "How the joints move from the frame before to this one, smoothed around each joint (the sparse motion field).",
        "Only the moving joints should have colour. A strong spot where nothing moves is a joint that jumped between "
        "two frames. All white means that nothing moves; as smoothing spreads the motion, lengths are far below those "
        "of the joints.",
    ),
    "dense": StageText(
        "Dense flow",
        "How every pixel of the photo moves to this frame, propagated from the joints (the dense motion field).",
        "The body should have the colours of its limbs' directions, with edges near its outline. One colour all over: "
        "the whole figure moved, look at the aligned skeletons. Black: values that are not finite.",
    ),
    "points": StageText(
        "Keypoint correspondence",
        "The photo's joints and the cells into which they fall. The look of the photo at a joint is carried to that "
        "joint in every frame, at four levels from fine to coarse. Green cells carry a feature. Red cells hold a joint "
        "but lose its feature: coarse levels look at one corner of a cell only, as in the published method.",
        "Joints with a red ring share a cell, so their looks are averaged: a face that is small in the photo loses its "
        "details. Use a closer photo or larger engines. A joint that sits beside its limb carries the look of the "
        "background.",
        "few",
    ),
    "denoise": StageText(
        "Denoising",
        "The latents after the first step, a quarter, half and three quarters of the steps, and the last one. The map "
        "from four channels to colours is rough: a fixed linear one, made for the VAE of Stable Diffusion. Noisy "
        "latents are scaled to one contrast.",
        "The figure should be there by the middle, in the poses from above. Noise to the end: too few steps. Blotches "
        "or black cells: values that are too large for the engines' precision; build them with --precision bf16 or "
        "fp32. A jump between neighbouring frames: a border between tiles; raise the overlap.",
        "wide",
    ),
    "frames": StageText(
        "Finished frames",
        "The driving frame and, beside it, what became of it.",
        "Good poses above and a bad figure here: try another seed, more steps, or a guidance scale nearer to 2. Wrong "
        "colours all over: the engines were built from other weights.",
        "pairs",
    ),
}
"""In the order of the run."""

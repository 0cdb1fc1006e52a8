"""Prints a SHA-256 of everything that a golden run computes, to see whether a change of the code moved a bit.

python -m tests.golden_bits CACHE > bits.json    # CACHE keeps the engines, as DISPOSE_RT_TEST_CACHE does
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from dispose_rt_export.command import build_engines

from tests.golden_case import E2E_CASES, GoldenCase, Trace, animate

PRECISIONS = ("fp32", "fp16")


def digest(array: Any) -> str:
    """SHA-256 of an array's dtype, shape and bytes, 16 digits of it."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()[:16]


def digests(trace: Trace) -> Iterator[tuple[str, str]]:
    """Names and digests of what a run showed, and of its frames."""
    seen = trace.seen
    [conditions], [motion], [detected] = seen["conditions"], seen["motion"], seen["detected"]
    for number, pose in enumerate(seen["aligned"][0]):
        yield f"pose {number}", digest(np.where(pose.visible[..., None], pose.joints, -1))
    yield "driving boxes", digest(np.concatenate(detected.boxes_px))
    yield "drawn poses", digest(seen["poses"][0])
    yield "trajectory flow", digest(motion.trajectory_flow)
    yield "dense flow", digest(motion.dense_flow)
    for name in ("image_embeds", "image_latents", "added_time_ids", "pose_latents", "motion_features"):
        yield name, digest(getattr(conditions, name))
    for level, features in enumerate(conditions.point_features):
        yield f"point features {level}", digest(features)
    for step in seen["denoise_step"]:
        yield f"latents after step {step.step}", digest(step.latents)
    yield "frames", digest(trace.animation.frames)


def main() -> int:
    """Build what is missing, run every golden case in both precisions, and print the digests as JSON."""
    cache = Path(sys.argv[1])
    found: dict[str, dict[str, str]] = {}
    for precision in PRECISIONS:
        for name in E2E_CASES:
            case = GoldenCase(name)
            engines = cache / "golden-engines" / f"{case.size[0]}x{case.size[1]}-{case.tile}-{case.chunk}-{precision}"
            options = {"size": case.size, "tile": case.tile, "chunk": case.chunk, "precision": precision}
            build_engines(cache / "golden-checkpoint", engines, **options)
            found[f"{name} {precision}"] = dict(digests(animate(engines, **case.arguments())))
    json.dump(found, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())

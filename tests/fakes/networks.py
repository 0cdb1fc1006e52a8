"""All networks of an engine directory as cheap formulas, and runs of the whole pipeline on them.

What each answers depends on all that it reads; what the networks of the per-frame conditions answer depends, beyond
that, on how many frames share their batch, as it may with real ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from dispose_rt import media
from dispose_rt.contract import SchedulerConstants
from dispose_rt.device import Device
from dispose_rt.hooks.observer import Observer, ObserverFunction, as_observer
from dispose_rt.hooks.progress import Progress
from dispose_rt.noise import seeded_noise
from dispose_rt.pipeline.pace import Pace
from dispose_rt.pipeline.run import Run
from dispose_rt.puppet import dance
from dispose_rt.settings import Settings
from dispose_rt.stages import pose
from dispose_rt.stages.pose import draw
from dispose_rt.types import Pose
from tests.fakes.engine import FakeEngine, FakeLoader
from tests.stages.denoise.test_loop import SIZES, controlnet, unet

BAR_FRAMES = 36
_DANCE = dance(BAR_FRAMES, SIZES.width / SIZES.height)
Tensors = Mapping[str, np.ndarray]


def _batch_term(values: np.ndarray) -> np.float32:
    return np.float32(len(values) / 100)


def _cmp_features(inputs: Tensors) -> dict[str, Any]:
    mean = inputs["image"].mean()
    return {"image_features": mean, "skip_features_4": mean + 1, "skip_features_2": mean + 2}


def _motion_features(inputs: Tensors) -> dict[str, Any]:
    flow = inputs["dense_flow"] + 2 * inputs["trajectory_flow"]
    return {"motion_features": flow.mean(axis=1)[:, None, ::8, ::8] + _batch_term(flow)}


FORMULAS = {
    "person_detector": lambda inputs: {"output": 0},
    "pose_estimator": lambda inputs: {"simcc_x": 0, "simcc_y": 0},
    "dift": lambda inputs: {"features": inputs["image"][:, :1, ::16, ::16] + inputs["noise"].mean()},
    "cmp_image_encoder": _cmp_features,
    "cmp_flow_decoder": lambda inputs: {
        "flow": inputs["sparse_flow"] * np.float32(0.5)
        + inputs["image_features"].mean()
        + _batch_term(inputs["sparse_flow"])
    },
    "image_encoder": lambda inputs: {"image_embeds": inputs["pixel_values"].mean()},
    "vae_encoder": lambda inputs: {"latents": inputs["image"][:, :1, ::8, ::8]},
    "pose_net": lambda inputs: {
        "pose_latents": inputs["pose_images"][:, :1, ::8, ::8] + _batch_term(inputs["pose_images"])
    },
    "motion_encoder": _motion_features,
    "point_encoder": lambda inputs: {
        f"point_features_{level}": inputs["embeddings"].mean(axis=1)[:, None] for level in range(4)
    },
    "controlnet": controlnet,
    "unet": unet,
    "vae_decoder": lambda inputs: {"frames": np.tanh(inputs["latents"][:, :3]).repeat(8, axis=2).repeat(8, axis=3)},
}


class FakeNetworks:
    """Stands in for `backends.Engines`."""

    used_before_bytes = 0

    def __init__(self, device: Device | None = None) -> None:
        self.loader = FakeLoader(device)
        self.loaded: dict[str, FakeEngine] = {}
        self.manifest: Any = SimpleNamespace(
            sizes=SIZES,
            scheduler=SchedulerConstants(),
            backend="onnxruntime",
            targets=(),
            networks={name: SimpleNamespace(backend="onnxruntime", compute_dtype="float32") for name in FORMULAS},
        )

    def __call__(self, name: str) -> FakeEngine:
        if name not in self.loaded:
            self.loaded[name] = FakeEngine(name, SIZES, FORMULAS[name], stream=self.loader.stream)
        return self.loaded[name]

    def release(self, names: Iterable[str]) -> None:
        self.loader.drop_graphs({*names})
        for name in {*names} & self.loaded.keys():
            self.loaded.pop(name).close()

    def close(self) -> None:
        for engine in self.loaded.values():
            engine.close()


def dancer(number: int) -> Pose:
    joints = _DANCE[number % BAR_FRAMES]
    spread = np.linspace(-0.02, 0.02, 68)[:, None] * [1, -1]
    return Pose(
        joints=joints[None],
        joint_scores=np.full((1, 18), 0.9, np.float32),
        visible=np.ones((1, 18), bool),
        faces=joints[:1, None] + spread[None],
        face_scores=np.full((1, 68), 0.9, np.float32),
        hands=np.stack([joints[wrist] + spread[None, :21] for wrist in (4, 7)]),
        hand_scores=np.full((2, 1, 21), 0.9, np.float32),
        boxes_px=np.array([[0, 0, SIZES.width, SIZES.height]], np.float64),
    )


def film(frames: int) -> Iterator[np.ndarray]:
    """Driving frames, made when they are asked for."""
    for number in range(frames):
        yield np.full((SIZES.height, SIZES.width, 3), number % BAR_FRAMES, np.uint8)


def run_networks(
    networks: FakeNetworks,
    video: media.Video | Iterable[np.ndarray],
    observer: Observer | ObserverFunction | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Iterator[np.ndarray]:
    """The chunks of a run. The pose of a frame is that of the dance whose number its first pixel holds."""
    chosen = Settings(**{"steps": 2, "stride": 1, "overlap": 2, **settings})
    engines: Any = networks
    run = Run(
        chosen,
        engines,
        networks.manifest,
        seeded_noise(chosen.seed),
        progress or Progress(False),
        as_observer(observer),
    )
    [reference] = film(1)
    opened = video if isinstance(video, media.Video) else media.open_video(video)
    with (
        patch.object(pose, "find_poses", lambda image, detector, estimator: dancer(int(image[0, 0, 0]))),
        patch.object(draw, "CANVAS_SHORT_SIDE_PX", SIZES.width),  # coarse drawings take less time
    ):
        yield from run.chunks(reference, opened, Pace.of(opened, chosen).step)

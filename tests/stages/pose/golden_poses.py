"""The golden arrays as poses, and the published pose networks as engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dispose_rt.contract import Sizes
from dispose_rt.device.cpu import CpuStream
from dispose_rt.stages.pose import PersonDetector, PoseEstimator
from dispose_rt.types import Pose
from tests.fakes.engine import FakeEngine
from tests.golden_data import load_golden

SIZES = Sizes(64, 64)


class PublishedEngine(FakeEngine):
    """A published ONNX file as an engine, without a manifest around it."""

    def __init__(self, name: str, file: Path | bytes) -> None:
        source = file if isinstance(file, bytes) else str(file)
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        super().__init__(name, SIZES, lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True)))


class RecordedEngine(FakeEngine):
    """Answers with stored arrays, one set per call, and keeps what it was asked."""

    def __init__(
        self, name: str, answers: list[dict[str, NDArray[np.generic]]], stream: CpuStream | None = None
    ) -> None:
        super().__init__(name, SIZES, self._answer, stream=stream)
        self.answers = list(answers)
        self.asked: list[Mapping[str, NDArray[np.generic]]] = []

    def _answer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        self.asked.append(inputs)
        return self.answers.pop(0)


def detector_input(image: NDArray[np.uint8]) -> NDArray[np.generic]:
    """float32 [1, 3, 640, 640], what the detector gets to see."""
    engine = RecordedEngine("person_detector", [{"output": 0}])
    PersonDetector(engine).detect(image)
    return engine.asked[0]["images"]


def estimator_input(image: NDArray[np.uint8], box_px: NDArray[np.float64]) -> NDArray[np.generic]:
    """float32 [1, 3, 384, 288], what the pose network gets to see of a person."""
    engine = RecordedEngine("pose_estimator", [{"simcc_x": 0, "simcc_y": 0}])
    PoseEstimator(engine).estimate(image, box_px[None])
    return engine.asked[0]["input"]


def read_pose(file: str, prefix: str, row: int | None = None) -> Pose:
    """A stored detection, e.g. ("dwpose", "one_person.") or ("e2e", "one_tile_64.detected_", 3)."""

    def read(name: str) -> NDArray[np.generic]:
        array = load_golden(file)[prefix + name]
        return array if row is None else array[row]

    visible = read("subset") >= 0
    persons = len(visible)
    return Pose(
        joints=read("candidate").reshape(persons, 18, 2),
        joint_scores=read("score").astype(np.float32),
        visible=visible,
        faces=read("faces"),
        face_scores=read("faces_score").astype(np.float32),
        hands=read("hands").reshape(2, persons, 21, 2),
        hand_scores=read("hands_score").astype(np.float32).reshape(2, persons, 21),
        boxes_px=np.tile([0.0, 0.0, 1.0, 1.0], (persons, 1)),
    )


def assert_same_pose(pose: Pose, expected: Pose, atol: float = 0.0) -> None:
    """Coordinates within `atol`, scores and visibility exactly."""
    for name in ("joints", "faces", "hands"):
        np.testing.assert_allclose(getattr(pose, name), getattr(expected, name), rtol=0, atol=atol, err_msg=name)
    for name in ("joint_scores", "visible", "face_scores", "hand_scores"):
        np.testing.assert_array_equal(getattr(pose, name), getattr(expected, name), err_msg=name)

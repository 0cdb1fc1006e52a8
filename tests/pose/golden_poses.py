"""The golden arrays as poses, and the published pose networks as engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from golden_data import load_golden
from numpy.typing import NDArray

from dispose_rt.types import Pose


class PublishedEngine:
    """A published ONNX file as an `Engine`, without a manifest around it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def max_batch(self, dimension: str) -> int:
        raise NotImplementedError(dimension)

    def close(self) -> None:
        del self._session


class RecordedEngine:
    """Answers with stored arrays, one set per call, and keeps what it was asked."""

    def __init__(self, name: str, answers: list[dict[str, NDArray[np.generic]]]) -> None:
        self.name = name
        self.answers = list(answers)
        self.asked: list[Mapping[str, NDArray[np.generic]]] = []

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        self.asked.append(inputs)
        return self.answers.pop(0)

    def max_batch(self, dimension: str) -> int:
        raise NotImplementedError(dimension)

    def close(self) -> None:
        self.answers.clear()


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

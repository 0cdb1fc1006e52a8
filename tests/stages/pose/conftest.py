"""The published detector and pose network of the golden checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from dispose_rt.stages.pose import PersonDetector, PoseEstimator

from .golden_poses import PublishedEngine


@pytest.fixture(scope="session")
def detector(golden_checkpoint: Path) -> PersonDetector:
    return PersonDetector(PublishedEngine("person_detector", golden_checkpoint / "dwpose/yolox_l.onnx"))


@pytest.fixture(scope="session")
def estimator(golden_checkpoint: Path) -> PoseEstimator:
    return PoseEstimator(PublishedEngine("pose_estimator", golden_checkpoint / "dwpose/dw-ll_ucoco_384.onnx"))

"""From images to aligned, drawn poses of one person: detect, estimate, follow, align, draw."""

from .align import Alignment, fit_alignment
from .detect import PersonDetector
from .draw import draw_pose
from .estimate import PoseEstimator
from .find import find_poses
from .follow import fill_missing, follow_person

__all__ = [
    "Alignment",
    "PersonDetector",
    "PoseEstimator",
    "draw_pose",
    "fill_missing",
    "find_poses",
    "fit_alignment",
    "follow_person",
]

"""From images to aligned, drawn poses of one person: detect, estimate, follow, bridge, align, draw."""

from .align import Alignment, check_drawn, fit_alignment, fit_robust
from .detect import PersonDetector
from .draw import draw_pose
from .estimate import PoseEstimator
from .find import find_poses
from .follow import fill_missing, find_again, follow_person
from .gaps import bridge_gaps

__all__ = [
    "Alignment",
    "PersonDetector",
    "PoseEstimator",
    "bridge_gaps",
    "check_drawn",
    "draw_pose",
    "fill_missing",
    "find_again",
    "find_poses",
    "fit_alignment",
    "fit_robust",
    "follow_person",
]

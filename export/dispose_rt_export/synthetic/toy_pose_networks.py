"""Stand-ins for DWPose's two networks: graphs built by hand that find the drawn puppet (`dispose_rt.puppet`).

They have the published names and shapes, and what a stage must cope with in the real ones: undecoded YOLOX rows, SimCC
bumps, low scores for what is not seen. Both look at colour alone: each joint has one filter that is 1 where a
pixel is saturated and has the joint's hue.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from dispose_rt.puppet import HUES, JOINT_HUES

from .onnx_graph import GraphWriter
from .whole_body import BODY, LANDMARKS, body_prior_unit, landmark_weights

DETECTOR_FILE, ESTIMATOR_FILE = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"

F32 = NDArray[np.float32]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
_BT601 = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""(R, G, B) -> (Cb, Cr), grey at (0, 0)."""

_HALF_SECTOR = 0.85 * math.pi / HUES
"""Half the range of hues that one filter accepts; at pi / HUES it would touch its neighbours."""
_FAINT, _CLEAR = 38.0, 58.0
"""Chroma at which a filter starts to respond, and at which it responds fully."""
_EDGE = 5.0
"""Chroma levels over which a filter fades out at the border of its sector."""
_FEWEST_JOINTS = 3.5
"""Fewer colours than this are coloured things, not a puppet; two more are a puppet for certain."""
_LARGEST_SHARE_OF_BOX, _LARGEST_SHARE_OF_CROP = 0.25, 0.15
"""More colour than this is a colourful picture. A puppet's discs cover less than a tenth of its box."""

_CANVAS, _DETECTOR_STRIDE, _PERSONS = 640, 2, 4
_ROWS = 8400
_GRID_STRIDE, _FIRST_COARSE_ROW = 32.0, 8000
_CROP_HEIGHT, _CROP_WIDTH = 384, 288
_BLUR_TAPS, _BLUR_SIGMA_PX = 15, 3.0


def write_pose_networks(folder: Path) -> None:
    """Write both stand-ins under DWPose's published file names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in ((DETECTOR_FILE, build_detector()), (ESTIMATOR_FILE, build_estimator())):
        onnx.save(model, folder / name)


def build_detector() -> onnx.ModelProto:
    """Return the stand-in for YOLOX: "images" [1, 3, 640, 640] (0..255, RGB) -> "output" [1, 8400, 85], undecoded.

    Persons are groups of puppet-coloured columns; puppets whose columns touch count as one. Up to four are returned,
    the tallest with the highest score, in the first rows of the coarsest level; all other rows score 0.
    """
    graph = GraphWriter("puppet_detector")
    maps = _joint_maps(graph, "images", np.ones(3), np.zeros(3), _DETECTOR_STRIDE)  # [1, 17, 320, 320]
    maps = graph.add("AveragePool", maps, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    colored = graph.add("ReduceMax", maps, axes=[1], keepdims=1)
    occupied = _to_float(graph, graph.add("Greater", colored, 0.5))  # [1, 1, 320, 320]
    member = _group_columns(graph, occupied)  # [1, persons, 1, 320]
    boxes, height, share = _measure_groups(graph, occupied, member)  # [1, persons, 4] xyxy
    score = _score_groups(graph, maps, member, height, share)  # [1, persons, 1]
    person = graph.add(
        "Concat", _encode_boxes(graph, boxes), score, graph.add("Add", _scaled(graph, score, 0.0), 1.0), axis=2
    )
    rest = np.zeros((1, _PERSONS, 79), np.float32)
    person = graph.add("Concat", person, rest, axis=2)
    before = np.zeros((1, _FIRST_COARSE_ROW, 85), np.float32)
    after = np.zeros((1, _ROWS - _FIRST_COARSE_ROW - _PERSONS, 85), np.float32)
    zeros = [graph.add("ConstantOfShape", np.array(part.shape, np.int64)) for part in (before, after)]
    graph.add("Concat", zeros[0], person, zeros[1], axis=1, output="output")
    return graph.model({"images": (1, 3, _CANVAS, _CANVAS)}, {"output": (1, _ROWS, 85)})


def _joint_maps(
    graph: GraphWriter, image: str, scale: NDArray[np.float64], shift: NDArray[np.float64], stride: int
) -> str:
    """One map per body point, 0..1: saturated pixels of its hue. `image * scale + shift` are levels 0..255 in RGB."""
    angles = np.array([JOINT_HUES[name] for name in BODY])
    along = np.stack([np.cos(angles), np.sin(angles)], 1) @ _BT601
    across = np.stack([-np.sin(angles), np.cos(angles)], 1) @ _BT601
    rows = np.concatenate([along, across])
    weights = (rows * scale)[:, :, None, None].astype(np.float32)
    bias = (rows @ shift).astype(np.float32)
    chroma = graph.add("Conv", image, weights, bias, kernel_shape=[1, 1], strides=[stride, stride])
    forward = _channels(graph, chroma, 0, HUES)
    sideways = graph.add("Abs", _channels(graph, chroma, HUES, 2 * HUES))
    inside = graph.add("Sub", _scaled(graph, forward, math.tan(_HALF_SECTOR)), sideways)
    in_hue = graph.add("Clip", _scaled(graph, inside, 1 / _EDGE), 0.0, 1.0)
    saturated = graph.add("Clip", _scaled(graph, graph.add("Sub", forward, _FAINT), 1 / (_CLEAR - _FAINT)), 0.0, 1.0)
    return graph.add("Mul", in_hue, saturated)


def _channels(graph: GraphWriter, value: str, start: int, stop: int) -> str:
    return graph.add("Slice", value, np.array([start]), np.array([stop]), np.array([1]))


def _scaled(graph: GraphWriter, value: str, factor: float) -> str:
    return graph.add("Mul", value, factor)


def _to_float(graph: GraphWriter, value: str) -> str:
    return graph.add("Cast", value, to=onnx.TensorProto.FLOAT)


def _group_columns(graph: GraphWriter, occupied: str) -> str:
    """Number the runs of columns that hold colour; limbs are grey, so gaps up to a forearm are bridged."""
    size, reach = _CANVAS // _DETECTOR_STRIDE, 15
    columns = graph.add("Squeeze", graph.add("ReduceMax", occupied, axes=[2], keepdims=1), np.array([2]))  # [1, 1, 320]
    bridged = graph.add("MaxPool", columns, kernel_shape=[2 * reach + 1], pads=[reach, reach], strides=[1])
    shifted = graph.add("Slice", graph.add("Pad", bridged, np.array([0, 0, 1, 0, 0, 0])), *_range(0, size, 2))
    starts = graph.add("Relu", graph.add("Sub", bridged, shifted))
    number = graph.add("Mul", graph.add("CumSum", starts, np.array(2)), bridged)
    wanted = np.arange(1, _PERSONS + 1, dtype=np.float32)[None, :, None]
    distance = graph.add("Abs", graph.add("Sub", number, wanted))
    member = _to_float(graph, graph.add("Less", distance, 0.5))  # [1, persons, 320]
    return graph.add("Unsqueeze", member, np.array([2]))


def _range(start: int, stop: int, axis: int) -> tuple[NDArray[np.int64], ...]:
    return np.array([start]), np.array([stop]), np.array([axis])


def _measure_groups(graph: GraphWriter, occupied: str, member: str) -> tuple[str, str, str]:
    """Boxes around every group's joints, widened to the rest of the body; heights; how much of the box is coloured."""
    size = _CANVAS // _DETECTOR_STRIDE
    mine = graph.add("Mul", occupied, member)  # [1, persons, 320, 320]
    first, last = np.arange(size, dtype=np.float32)[::-1].copy(), np.arange(1, size + 1, dtype=np.float32)
    edges = []
    for reduced in (2, 3):  # over rows: the columns in use, then over columns: the rows in use
        used = graph.add("ReduceMax", mine, axes=[reduced], keepdims=0)  # [1, persons, 320]
        low = graph.add("ReduceMax", graph.add("Mul", used, first + 1), axes=[2], keepdims=1)
        high = graph.add("ReduceMax", graph.add("Mul", used, last), axes=[2], keepdims=1)
        edges.append((graph.add("Sub", float(size), low), high))
    (left, right), (top, bottom) = edges
    height = graph.add("Relu", graph.add("Sub", bottom, top))  # an empty group has 0
    area = graph.add("Max", graph.add("Mul", graph.add("Sub", right, left), height), 1.0)
    pixels = graph.add("ReduceSum", mine, np.array([2, 3]), keepdims=0)
    share = graph.add("Div", graph.add("Unsqueeze", pixels, np.array([2])), area)
    margins = ((left, -0.03), (top, -0.10), (right, 0.03), (bottom, 0.04))
    sides = [graph.add("Add", edge, _scaled(graph, height, margin)) for edge, margin in margins]
    boxes = _scaled(graph, graph.add("Concat", *sides, axis=2), float(_DETECTOR_STRIDE))
    return boxes, height, share


def _score_groups(graph: GraphWriter, maps: str, member: str, height: str, share: str) -> str:
    """0 without enough different joint colours, else 0.6..0.95, the taller the higher."""
    columns = graph.add("ReduceMax", maps, axes=[2], keepdims=0)  # [1, 17, 320]
    columns = graph.add("Unsqueeze", columns, np.array([1]))  # [1, 1, 17, 320]
    present = graph.add("ReduceMax", graph.add("Mul", columns, member), axes=[3], keepdims=0)  # [1, persons, 17]
    certain = _puppet_certainty(graph, present, 2, share, _LARGEST_SHARE_OF_BOX)
    prominence = _scaled(graph, height, 0.35 * _DETECTOR_STRIDE / _CANVAS)
    return graph.add("Mul", certain, graph.add("Add", prominence, 0.6))


def _puppet_certainty(graph: GraphWriter, present: str, axis: int, share: str, largest_share: float) -> str:
    """0..1: many different joints are seen, and most of the place is not coloured."""
    count = graph.add("ReduceSum", present, np.array([axis]), keepdims=1)
    many = graph.add("Clip", _scaled(graph, graph.add("Sub", count, _FEWEST_JOINTS), 0.5), 0.0, 1.0)
    sparse = graph.add("Clip", _scaled(graph, graph.add("Sub", largest_share, share), 20.0), 0.0, 1.0)
    return graph.add("Mul", many, sparse)


def _encode_boxes(graph: GraphWriter, boxes: str) -> str:
    """Corners in pixels -> YOLOX's centre offset from its grid cell and log size, in units of the level's stride."""
    low = graph.add("Slice", boxes, *_range(0, 2, 2))
    high = graph.add("Slice", boxes, *_range(2, 4, 2))
    cells = np.stack([np.arange(_PERSONS), np.zeros(_PERSONS)], 1)[None].astype(np.float32)
    centre = graph.add("Sub", _scaled(graph, graph.add("Add", low, high), 0.5 / _GRID_STRIDE), cells)
    size = graph.add("Max", graph.add("Sub", high, low), 1.0)
    return graph.add("Concat", centre, graph.add("Log", _scaled(graph, size, 1 / _GRID_STRIDE)), axis=2)


def build_estimator() -> onnx.ModelProto:
    """Return the stand-in for the pose network: "input" [1, 3, 384, 288] (ImageNet-normalised RGB) -> "simcc_x"
    [1, 133, 576] and "simcc_y" [1, 133, 768], half-pixel bins.

    The 17 body points are the centres of their colours; feet, face and hands follow from them (`whole_body`). A bump is
    as high as the confidence: how much of the joint's disc is seen, and whether enough of a puppet is.
    """
    graph = GraphWriter("puppet_pose_estimator")
    maps = _joint_maps(graph, "input", np.array(IMAGENET_STD), np.array(IMAGENET_MEAN), 1)
    maps = graph.add("Mul", maps, _crop_window())
    found = _blur(graph, maps)  # [1, 17, 384, 288]
    peak = graph.add("ReduceMax", found, axes=[2, 3], keepdims=0)  # [1, 17]
    seen = graph.add("Clip", _scaled(graph, graph.add("Sub", peak, 0.15), 1.4), 0.0, 0.97)
    share = graph.add("ReduceMean", graph.add("ReduceMax", maps, axes=[1], keepdims=0), axes=[1, 2], keepdims=0)
    share = graph.add("Reshape", share, np.array([1, 1]))
    certain = _puppet_certainty(graph, seen, 1, share, _LARGEST_SHARE_OF_CROP)
    confidence = graph.add("Add", graph.add("Mul", seen, certain), 0.01)
    places = _locate(graph, maps, found, confidence)  # [1, 17, 2]
    points, scores = _spread_to_landmarks(graph, places, confidence)
    for axis, (name, size) in enumerate((("simcc_x", 2 * _CROP_WIDTH), ("simcc_y", 2 * _CROP_HEIGHT))):
        coordinate = graph.add("Slice", points, *_range(axis, axis + 1, 2))  # [1, 133, 1]
        bins = np.arange(size, dtype=np.float32)[None, None]
        offset = _scaled(graph, graph.add("Sub", bins, _scaled(graph, coordinate, 2.0)), 1 / 6.0)
        bump = graph.add("Exp", _scaled(graph, graph.add("Mul", offset, offset), -0.5))
        graph.add("Mul", bump, scores, output=name)
    outputs = {"simcc_x": (1, len(LANDMARKS), 2 * _CROP_WIDTH), "simcc_y": (1, len(LANDMARKS), 2 * _CROP_HEIGHT)}
    return graph.model({"input": (1, 3, _CROP_HEIGHT, _CROP_WIDTH)}, outputs)


def _crop_window() -> F32:
    """Prefers the middle of the crop, where the detected person is, to a neighbour at its border."""
    y, x = (np.abs(np.linspace(-1, 1, size)) for size in (_CROP_HEIGHT, _CROP_WIDTH))
    fade = 1 - 0.3 * np.clip((np.maximum(y[:, None], x[None]) - 0.8) / 0.2, 0, 1)
    window: F32 = fade[None, None].astype(np.float32)
    return window


def _blur(graph: GraphWriter, maps: str) -> str:
    """Gaussian blur: 1 in the middle of a full disc, small for slivers and single pixels."""
    taps = np.exp(-0.5 * ((np.arange(_BLUR_TAPS) - _BLUR_TAPS // 2) / _BLUR_SIGMA_PX) ** 2)
    taps = np.tile((taps / taps.sum()).astype(np.float32), (HUES, 1))
    half = _BLUR_TAPS // 2
    down = graph.add("Conv", maps, taps[:, None, :, None], group=HUES, pads=[half, 0, half, 0])
    return graph.add("Conv", down, taps[:, None, None, :], group=HUES, pads=[0, half, 0, half])


def _locate(graph: GraphWriter, maps: str, found: str, confidence: str) -> str:
    """Centre of the colour around its strongest place; where there is none, where that joint usually is."""
    best = graph.add("ArgMax", graph.add("Reshape", found, np.array([1, HUES, -1])), axis=2, keepdims=1)  # [1, 17, 1]
    row = graph.add("Div", best, np.array(_CROP_WIDTH))
    column = graph.add("Sub", best, graph.add("Mul", row, np.array(_CROP_WIDTH)))
    y, x = (np.arange(size, dtype=np.float32)[None, None] for size in (_CROP_HEIGHT, _CROP_WIDTH))
    near_y, near_x = (_window(graph, grid, _to_float(graph, place)) for grid, place in ((y, row), (x, column)))
    weights = graph.add("Mul", maps, graph.add("Unsqueeze", near_y, np.array([3])))
    weights = graph.add("Mul", weights, graph.add("Unsqueeze", near_x, np.array([2])))
    prior = body_prior_unit() * (_CROP_WIDTH, _CROP_HEIGHT)
    total = graph.add("Add", graph.add("ReduceSum", weights, np.array([2, 3]), keepdims=0), _PRIOR_MASS)  # [1, 17]
    centres = []
    for axis, (grid, reduced) in enumerate(((x, 2), (y, 3))):
        profile = graph.add("ReduceSum", weights, np.array([reduced]), keepdims=0)  # [1, 17, size]
        moment = graph.add("ReduceSum", graph.add("Mul", profile, grid), np.array([2]), keepdims=0)
        expected = (_PRIOR_MASS * prior[None, :, axis]).astype(np.float32)
        centre = graph.add("Div", graph.add("Add", moment, expected), total)
        centres.append(graph.add("Unsqueeze", centre, np.array([2])))
    return graph.add("Concat", *centres, axis=2)


_PRIOR_MASS = 0.05
"""Weight, in pixels of colour, of a joint's usual place."""


def _window(graph: GraphWriter, grid: F32, place: str) -> str:
    offset = _scaled(graph, graph.add("Sub", grid, place), 1 / 9.0)
    return graph.add("Exp", _scaled(graph, graph.add("Mul", offset, offset), -0.5))


def _spread_to_landmarks(graph: GraphWriter, places: str, confidence: str) -> tuple[str, str]:
    """All 133 points [1, 133, 2] and scores [1, 133, 1] from the 17 body points."""
    straight, turned, sources = landmark_weights()
    quarter_turn = np.array([[0, 1], [-1, 0]], np.float32)  # (x, y) @ this = (-y, x)
    points = graph.add(
        "Add",
        graph.add("MatMul", straight, places),
        graph.add("MatMul", turned, graph.add("MatMul", places, quarter_turn)),
    )
    scores = [graph.add("Gather", confidence, column, axis=1) for column in sources.T]
    return points, graph.add("Unsqueeze", graph.add("Min", *scores), np.array([2]))

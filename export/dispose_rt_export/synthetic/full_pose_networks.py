"""DWPose's two networks with the published layers and sizes, and seeded values: they find nobody.

Both are laid out as they are published: batch norms are folded into the convolutions before them.

- "YOLOX: Exceeding YOLO Series in 2021", model L: CSPDarknet, PAFPN and decoupled heads.
- "RTMPose: Real-Time Multi-Person Pose Estimation based on MMPose", model L at 384x288 for 133 points: CSPNeXt, then a
  gated attention unit over the points, and one row of bins per axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from .onnx_graph import GraphWriter, Operand

PUBLISHED_CHANNELS = 64
"""Channels of the first layers of model L; all others are multiples."""
_CANVAS, _CLASSES = 640, 80
_ROWS = 8400
_LEVELS = 128
"""Of a pixel, whose values are not normalised for the detector."""
_CROP_HEIGHT, _CROP_WIDTH, _POINTS = 384, 288, 133
_BINS_PER_PIXEL = 2
_GAIN, _RESIDUAL_GAIN = 1.7, 0.6
"""Gains of kernels, against the loss of variance in SiLU; of what is added to a residual path, which stays near 1."""


class _Map(NamedTuple):
    """A value of the graph [1, channels, height, width]."""

    name: str
    channels: int


class _Layers:
    """Adds layers with seeded weights to a graph."""

    def __init__(self, name: str, seed: int) -> None:
        self.graph = GraphWriter(name)
        self._random = np.random.Generator(np.random.PCG64(seed))

    def normal(self, *shape: int, scale: float) -> NDArray[np.float32]:
        """Draw a weight."""
        return self._random.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        """Multiply the last axis by a matrix."""
        return self.graph.add("MatMul", x, self.normal(inputs, outputs, scale=1 / math.sqrt(inputs)))

    def silu(self, x: str) -> str:
        return self.graph.add("Mul", x, self.graph.add("Sigmoid", x))

    def conv(
        self, x: _Map, channels: int, size: int = 1, stride: int = 1, *, groups: int = 1, gain: float = _GAIN
    ) -> _Map:
        """Convolve, with a bias."""
        shape = (channels, x.channels // groups, size, size)
        weight = self.normal(*shape, scale=gain / math.sqrt(math.prod(shape[1:])))
        options: dict[str, Any] = {
            "kernel_shape": [size] * 2,
            "strides": [stride] * 2,
            "pads": [size // 2] * 4,
            "group": groups,
        }
        return _Map(self.graph.add("Conv", x.name, weight, self.normal(channels, scale=0.1), **options), channels)

    def block(
        self, x: _Map, channels: int, size: int = 1, stride: int = 1, *, groups: int = 1, gain: float = _GAIN
    ) -> _Map:
        """Convolve, then SiLU."""
        return _Map(self.silu(self.conv(x, channels, size, stride, groups=groups, gain=gain).name), channels)

    def concat(self, *maps: _Map) -> _Map:
        return _Map(self.graph.add("Concat", *(x.name for x in maps), axis=1), sum(x.channels for x in maps))

    def pool_pyramid(self, x: _Map) -> _Map:
        """Pool over three window sizes, and mix the results: the SPP bottleneck."""
        half = self.block(x, x.channels // 2)
        options: list[dict[str, Any]] = [
            {"kernel_shape": [size] * 2, "pads": [size // 2] * 4, "strides": [1, 1]} for size in (5, 9, 13)
        ]
        pooled = [_Map(self.graph.add("MaxPool", half.name, **one), half.channels) for one in options]
        return self.block(self.concat(half, *pooled), x.channels)

    def split(self, x: _Map, channels: int, steps: int, step: Callable[[_Map], _Map], *, shortcut: bool) -> _Map:
        """Send one half of the channels through residual steps, and join both halves: a CSP layer without its end."""
        through, beside = self.block(x, channels // 2), self.block(x, channels // 2)
        for _ in range(steps):
            result = step(through)
            through = _Map(self.graph.add("Add", through.name, result.name), result.channels) if shortcut else result
        return self.concat(through, beside)


def build_detector(seed: int = 0, channels: int = PUBLISHED_CHANNELS) -> onnx.ModelProto:
    """Return YOLOX-L: "images" [1, 3, 640, 640] -> "output" [1, 8400, 85], undecoded."""
    c = channels
    layers = _Layers("yolox_l", seed)

    def stage(x: _Map, channels: int, steps: int, *, shortcut: bool = True) -> _Map:
        def step(x: _Map) -> _Map:
            return layers.block(layers.block(x, x.channels), x.channels, 3, gain=_RESIDUAL_GAIN if shortcut else _GAIN)

        return layers.block(layers.split(x, channels, steps, step, shortcut=shortcut), channels)

    def enlarge(x: _Map) -> _Map:
        scales = np.array([1, 1, 2, 2], np.float32)
        return _Map(layers.graph.add("Resize", x.name, "", scales, mode="nearest"), x.channels)

    x = layers.block(_every_second_pixel(layers), c, 3, gain=_GAIN / _LEVELS)
    levels = []
    for width, steps in ((2 * c, 3), (4 * c, 9), (8 * c, 9)):
        x = stage(layers.block(x, width, 3, 2), width, steps)
        levels.append(x)
    deepest = stage(layers.pool_pyramid(layers.block(x, 16 * c, 3, 2)), 16 * c, 3, shortcut=False)
    _, fine, middle = levels

    lateral = layers.block(deepest, 8 * c)
    merged = stage(layers.concat(enlarge(lateral), middle), 8 * c, 3, shortcut=False)
    reduced = layers.block(merged, 4 * c)
    first = stage(layers.concat(enlarge(reduced), fine), 4 * c, 3, shortcut=False)
    second = stage(layers.concat(layers.block(first, 4 * c, 3, 2), reduced), 8 * c, 3, shortcut=False)
    third = stage(layers.concat(layers.block(second, 8 * c, 3, 2), lateral), 16 * c, 3, shortcut=False)
    rows = [_detect(layers, level, 4 * c) for level in (first, second, third)]
    layers.graph.add("Transpose", layers.graph.add("Concat", *rows, axis=2), perm=[0, 2, 1], output="output")
    return layers.graph.model({"images": (1, 3, _CANVAS, _CANVAS)}, {"output": (1, _ROWS, 5 + _CLASSES)})


def _every_second_pixel(layers: _Layers) -> _Map:
    """Turn 2 x 2 pixels into channels: YOLOX's focus."""
    parts = []
    for left in range(2):
        for top in range(2):
            bounds: list[Operand] = [np.array(part) for part in ([top, left], [_CANVAS] * 2, [2, 3], [2, 2])]
            parts.append(_Map(layers.graph.add("Slice", "images", *bounds), 3))
    return layers.concat(*parts)


def _detect(layers: _Layers, level: _Map, width: int) -> str:
    """Boxes, certainties and classes of one level: [1, 85, places]."""
    stem = layers.block(level, width)
    about_class, about_box = (layers.block(layers.block(stem, width, 3), width, 3) for _ in range(2))
    box, certainty, kind = (
        layers.conv(x, channels).name for x, channels in ((about_box, 4), (about_box, 1), (about_class, _CLASSES))
    )
    scores = [layers.graph.add("Sigmoid", one) for one in (certainty, kind)]
    whole = layers.graph.add("Concat", box, *scores, axis=1)
    return layers.graph.add("Reshape", whole, np.array([1, 5 + _CLASSES, -1]))


def build_estimator(seed: int = 0, channels: int = PUBLISHED_CHANNELS) -> onnx.ModelProto:
    """Return RTMPose-L: "input" [1, 3, 384, 288] -> "simcc_x" [1, 133, 576] and "simcc_y" [1, 133, 768]."""
    c = channels
    layers = _Layers("rtmpose_l", seed)
    x = layers.block(layers.block(_Map("input", 3), c // 2, 3, 2), c // 2, 3)
    x = layers.block(x, c, 3)
    for width, steps in ((2 * c, 3), (4 * c, 6), (8 * c, 6)):
        x = _next_stage(layers, layers.block(x, width, 3, 2), steps, shortcut=True)
    x = _next_stage(layers, layers.pool_pyramid(layers.block(x, 16 * c, 3, 2)), 3, shortcut=False)
    places = _CROP_HEIGHT * _CROP_WIDTH // 32**2
    maps = layers.conv(x, _POINTS, 7, gain=1.0)
    points = layers.graph.add("Reshape", maps.name, np.array([1, _POINTS, places]))
    points = layers.linear(_scale_norm(layers, points, places), places, 256)
    points = _attend(layers, points, 256)
    outputs = {}
    for name, size in (("simcc_x", _CROP_WIDTH), ("simcc_y", _CROP_HEIGHT)):
        bins = size * _BINS_PER_PIXEL
        layers.graph.add("MatMul", points, layers.normal(256, bins, scale=1 / 16), output=name)
        outputs[name] = (1, _POINTS, bins)
    return layers.graph.model({"input": (1, 3, _CROP_HEIGHT, _CROP_WIDTH)}, outputs)


def _next_stage(layers: _Layers, x: _Map, steps: int, *, shortcut: bool) -> _Map:
    """Add a CSP layer with large kernels, whose channels are weighted by their means before its end."""
    gain = _RESIDUAL_GAIN if shortcut else _GAIN

    def step(x: _Map) -> _Map:
        dense = layers.block(x, x.channels, 3)
        return layers.block(layers.block(dense, x.channels, 5, groups=x.channels), x.channels, gain=gain)

    both = layers.split(x, x.channels, steps, step, shortcut=shortcut)
    mean = _Map(layers.graph.add("GlobalAveragePool", both.name), both.channels)
    weights = layers.graph.add("HardSigmoid", layers.conv(mean, both.channels).name, alpha=1 / 6, beta=0.5)
    return layers.block(_Map(layers.graph.add("Mul", both.name, weights), both.channels), x.channels)


def _scale_norm(layers: _Layers, x: str, width: int) -> str:
    """Divide rows by their root mean square."""
    norm = layers.graph.add("Mul", layers.graph.add("ReduceL2", x, axes=[-1], keepdims=1), width**-0.5)
    scaled = layers.graph.add("Div", x, layers.graph.add("Max", norm, 1e-5))
    return layers.graph.add("Mul", scaled, np.ones(1, np.float32))


def _attend(layers: _Layers, points: str, width: int) -> str:
    """Add a gated attention unit over the points."""
    gate_width, key_width = 2 * width, 128
    graph = layers.graph
    mixed = layers.silu(layers.linear(_scale_norm(layers, points, width), width, 2 * gate_width + key_width))
    ends = (0, gate_width, 2 * gate_width, 2 * gate_width + key_width)
    gate, value, base = (
        graph.add("Slice", mixed, np.array([begin]), np.array([end]), np.array([2])) for begin, end in pairwise(ends)
    )
    query, key = (
        graph.add(
            "Add", graph.add("Mul", base, layers.normal(key_width, scale=1.0)), layers.normal(key_width, scale=0.1)
        )
        for _ in range(2)
    )
    scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 2, 1]))
    kernel = graph.add("Relu", graph.add("Mul", scores, key_width**-0.5))
    attended = graph.add("MatMul", graph.add("Mul", kernel, kernel), value)
    result = layers.linear(graph.add("Mul", gate, attended), gate_width, width)
    return graph.add("Add", graph.add("Mul", points, np.ones(width, np.float32)), result)


POSE_NETWORKS: Mapping[str, tuple[Callable[[int, int], onnx.ModelProto], int]] = {
    "person_detector": (build_detector, 216_697_116),
    "pose_estimator": (build_estimator, 134_365_616),
}
"""Builders from seed and channels, and bytes of the values at the published width, by names of `checkpoints.FILES`."""

"""Loads single networks of an engine directory and runs them on made-up inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import NETWORKS, NetworkSpec, Sizes, TensorSpec
from ..engines.backends import Engine
from ..engines.backends.validation import host_dtype
from ..engines.manifest import Manifest
from ..engines.open import Engines
from ..errors import DisposeError

_CONSTANTS = {"added_time_ids": [[6.0, 127.0, 0.0]], "timestep": [0.9]}
"""Stable Video Diffusion's usual ids; a quarter of the logarithm of a sigma in the middle of a schedule."""


@dataclass(frozen=True)
class SmokeRun:
    """One run of a network on made-up inputs: the values of its dynamic dimensions, and its duration in seconds."""

    dynamic: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class NetworkReport:
    """Outcome of one network; `failure` is empty if it loaded and returned finite values."""

    name: str
    backend: str
    load_s: float
    runs: tuple[SmokeRun, ...]
    failure: str


def try_network(manifest: Manifest, name: str, device: str, load_only: bool) -> NetworkReport:
    """Load one network alone, run it with its dynamic dimensions at 1 and at their limits, and close it again.

    Args:
        manifest: its directory, which was checked before.
        name: of the network.
        device: "auto", "cpu", "cuda" or "cuda:N".
        load_only: do not run it.
    """
    record, spec = manifest.networks[name], NETWORKS[name]
    engines = Engines(manifest, device)
    runs: list[SmokeRun] = []
    load_s, failure = 0.0, ""
    start = time.perf_counter()
    try:
        engine = engines(name)
        load_s = time.perf_counter() - start
        for dynamic in [] if load_only else _extremes(spec, manifest.sizes):
            inputs = sample_inputs(spec, manifest.sizes, record.compute_dtype, dynamic)
            runs.append(_smoke_run(engine, inputs, dynamic))
    except DisposeError as error:
        failure = str(error)
    finally:
        engines.close()
    return NetworkReport(name, record.backend, load_s, tuple(runs), failure)


def _smoke_run(engine: Engine, inputs: Mapping[str, NDArray[Any]], dynamic: dict[str, int]) -> SmokeRun:
    start = time.perf_counter()
    engine.run(inputs)  # it checks that the outputs are finite
    return SmokeRun(dynamic, time.perf_counter() - start)


def _extremes(spec: NetworkSpec, sizes: Sizes) -> list[dict[str, int]]:
    """Dynamic dimensions of the smallest and the largest run."""
    smallest = dict.fromkeys(spec.dynamic, 1)
    largest = {symbol: sizes.limit(symbol) for symbol in spec.dynamic}
    return [smallest] if smallest == largest else [smallest, largest]


def sample_inputs(
    spec: NetworkSpec, sizes: Sizes, compute_dtype: str, dynamic: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    """Make up plausible inputs for a network, the same ones every time.

    Args:
        spec: the network.
        sizes: values of the static symbols.
        compute_dtype: dtype of tensors marked "compute".
        dynamic: values of the dynamic symbols.

    Returns:
        C-contiguous arrays by name, of the contract's shapes and host dtypes.
    """
    random = np.random.default_rng(0)
    samples = {}
    for tensor in spec.inputs:
        shape = tuple(int(dim) for dim in sizes.resolve(tensor.shape, dynamic))
        dtype = host_dtype(tensor.resolve_dtype(compute_dtype))
        samples[tensor.name] = np.ascontiguousarray(_sample(tensor, shape, random), dtype)
    return samples


def _sample(tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    if tensor.name in _CONSTANTS:
        return np.array(_CONSTANTS[tensor.name], np.float32)
    if tensor.name == "images":  # the person detector reads pixels as they are
        return random.uniform(0, 255, shape).astype(np.float32)
    values = random.standard_normal(shape, np.float32)
    if tensor.name in ("image", "pose_images"):
        return np.clip(values, -1, 1)
    if tensor.name == "mask":
        return (values > 2).astype(np.float32)
    return values

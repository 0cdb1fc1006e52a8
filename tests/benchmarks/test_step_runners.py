"""The benchmark's way to run engines computes what the engines do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.speed.step_runners import EngineStep, captured
from dispose_rt.contract import NETWORKS
from dispose_rt.doctor.trials import sample_inputs
from dispose_rt.engines.manifest import read_manifest
from dispose_rt.engines.open import Engines
from dispose_rt.errors import EngineError
from tests.golden_case import GoldenCase


def test_a_step_runs_both_networks(golden_engines: Callable[..., Path]) -> None:
    folder = golden_engines(GoldenCase("one_tile_64"))
    manifest = read_manifest(folder)
    engines = Engines(manifest)
    inputs: dict[str, np.ndarray] = {}
    for name in ("controlnet", "unet"):
        inputs |= sample_inputs(NETWORKS[name], manifest.sizes, "float32", {})
    inputs = {name: values for name, values in inputs.items() if not name.startswith("residual_")}
    given = {name: {t.name: inputs[t.name] for t in NETWORKS[name].inputs if t.name in inputs} for name in NETWORKS}
    residuals = engines("controlnet").run(given["controlnet"])
    expected = engines("unet").run(given["unet"] | residuals)["noise_pred"]

    step = EngineStep(folder, {name: torch.from_numpy(values) for name, values in inputs.items()})
    step.run()
    np.testing.assert_array_equal(step.noise_pred().numpy(), expected)
    replay = captured(step)
    step.noise_pred().zero_()
    replay()
    np.testing.assert_array_equal(step.noise_pred().numpy(), expected)
    step.noise_pred().zero_()
    for part in step.parts().values():
        part()
    np.testing.assert_array_equal(step.noise_pred().numpy(), expected)
    step.close()
    with pytest.raises(EngineError, match="closed"):
        step.run()
    engines.close()

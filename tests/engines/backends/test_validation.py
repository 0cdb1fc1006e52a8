"""What every backend checks of its inputs and outputs."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.doctor.trials import sample_inputs
from dispose_rt.engines.backends.validation import check_inputs, check_outputs_finite, host_dtype
from dispose_rt.errors import EngineError, InputError
from tests.every import each

SIZES = Sizes(64, 64, 5, 2, (32, 64, 128, 128), 48, 96)
DTYPES = ("float32", "float16", "bfloat16")
NON_FINITE = (np.nan, -np.nan, np.inf, -np.inf)


def test_host_dtypes_are_numpys() -> None:
    assert [host_dtype(dtype) for dtype in DTYPES] == ["float32", "float16", "float32"]


@each(compute_dtype=DTYPES)
def test_sampled_inputs_are_what_the_contract_asks_for(compute_dtype: str) -> None:
    failures = []
    for network, spec in NETWORKS.items():
        for pick in (lambda symbol: 1, SIZES.limit):
            dynamic = {symbol: pick(symbol) for symbol in spec.dynamic}
            inputs = sample_inputs(spec, SIZES, compute_dtype, dynamic)
            try:
                check_outputs_finite(network, compute_dtype, inputs)
                if check_inputs(spec, SIZES, compute_dtype, inputs) != dynamic:
                    failures.append(f"{network} {dynamic}")
            except (InputError, EngineError) as error:
                failures.append(f"{network} {dynamic}: {error}")
    assert failures == []


def test_bfloat16_travels_as_float32() -> None:
    spec = NETWORKS["unet"]
    halves = sample_inputs(spec, SIZES, "float16", {})
    with pytest.raises(InputError, match=r"pose_latents is float16 .*, expected float32"):
        check_inputs(spec, SIZES, "bfloat16", halves)


@each(dtype=["float16", "float32", "float64"])
def test_one_bad_value_anywhere_is_found(dtype: str) -> None:
    missed = []
    for value, place in itertools.product(NON_FINITE, (0, 7, 59)):
        array = np.linspace(-1, 1, 60, dtype=dtype).reshape(3, 4, 5)
        array.flat[place] = value
        for name, layout in {"plain": array, "turned": array.transpose(2, 0, 1), "flipped": array[:, ::-1]}.items():
            try:
                check_outputs_finite("unet", "float32", {"latents": np.ones(3, np.float32), "noise_pred": layout})
            except EngineError as error:
                if re.search(r"unet returned non-finite.*: noise_pred: 1 of 60 values\.", str(error)):
                    continue
            missed.append((value, place, name))
    assert missed == []


@each(dtype=["float16", "float32", "float64"])
def test_finite_values_pass(dtype: str) -> None:
    info = np.finfo(dtype)
    extremes = [info.max, info.min, info.tiny, -info.tiny, info.smallest_subnormal, 0.0, -0.0]
    arrays = [np.array(extremes, dtype), np.array([info.min], dtype), np.array([-0.0], dtype), np.zeros((0, 3), dtype)]
    check_outputs_finite("unet", "float16", {str(i): array for i, array in enumerate(arrays)})


def test_every_half_is_judged_right() -> None:
    """All 65536 of them, one by one, against numpy."""
    for bits in np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 1):
        if np.isfinite(bits).all():
            check_outputs_finite("unet", "float16", {"x": bits})
        else:
            with pytest.raises(EngineError):
                check_outputs_finite("unet", "float16", {"x": bits})


def test_integers_are_finite() -> None:
    check_outputs_finite("unet", "float16", {"x": np.array([2**31 - 1, -1], np.int32)})


@each(
    compute_dtype__advice=[
        ("float16", "--precision bf16 or fp32"),
        ("bfloat16", "--precision fp32"),
        ("float32", "weights or inputs are at fault. Check the checkpoint"),
    ]
)
def test_the_advice_fits_the_precision(compute_dtype: str, advice: str) -> None:
    bad = np.array([1, np.nan, np.inf], np.float32)
    with pytest.raises(EngineError) as caught:
        check_outputs_finite("vae_decoder", compute_dtype, {"frames": bad})
    assert f"the network vae_decoder returned non-finite values in {compute_dtype}: frames: 2 of 3" in str(caught.value)
    assert advice in str(caught.value)

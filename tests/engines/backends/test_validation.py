"""What every backend checks of its inputs and outputs."""

from __future__ import annotations

import numpy as np
import pytest

from dispose_rt.contract import NETWORKS, Sizes
from dispose_rt.doctor.diagnosis import sample_inputs
from dispose_rt.engines.backends.validation import check_inputs, check_outputs_finite, host_dtype
from dispose_rt.errors import EngineError, InputError

SIZES = Sizes(64, 64, 5, 2, (32, 64, 128, 128), 48, 96)
NON_FINITE = (np.nan, -np.nan, np.inf, -np.inf)


@pytest.mark.parametrize(("dtype", "host"), [("float32", "float32"), ("float16", "float16"), ("bfloat16", "float32")])
def test_host_dtypes_are_numpys(dtype: str, host: str) -> None:
    assert host_dtype(dtype) == host
    assert np.dtype(host_dtype(dtype)).kind == "f"


@pytest.mark.parametrize("compute_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_sampled_inputs_are_what_the_contract_asks_for(network: str, compute_dtype: str) -> None:
    spec = NETWORKS[network]
    for pick in (lambda symbol: 1, SIZES.limit):
        dynamic = {symbol: pick(symbol) for symbol in spec.dynamic}
        inputs = sample_inputs(spec, SIZES, compute_dtype, dynamic)
        assert check_inputs(spec, SIZES, compute_dtype, inputs) == dynamic
        check_outputs_finite(network, compute_dtype, inputs)


def test_bfloat16_travels_as_float32() -> None:
    spec = NETWORKS["unet"]
    halves = sample_inputs(spec, SIZES, "float16", {})
    with pytest.raises(InputError, match=r"pose_latents is float16 .*, expected float32"):
        check_inputs(spec, SIZES, "bfloat16", halves)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", NON_FINITE)
@pytest.mark.parametrize("place", [0, 7, 59])
def test_one_bad_value_anywhere_is_found(dtype: str, value: float, place: int) -> None:
    array = np.linspace(-1, 1, 60, dtype=dtype).reshape(3, 4, 5)
    array.flat[place] = value
    for layout in (array, array.transpose(2, 0, 1), array[:, ::-1]):
        with pytest.raises(EngineError, match=r"unet answered non-finite.*: noise_pred: 1 of 60 values\."):
            check_outputs_finite("unet", "float32", {"latents": np.ones(3, np.float32), "noise_pred": layout})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
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


@pytest.mark.parametrize(
    ("compute_dtype", "advice"),
    [
        ("float16", "--precision bf16 or fp32"),
        ("bfloat16", "--precision fp32"),
        ("float32", "weights or inputs are at fault. Check the checkpoint"),
    ],
)
def test_the_advice_fits_the_precision(compute_dtype: str, advice: str) -> None:
    bad = np.array([1, np.nan, np.inf], np.float32)
    with pytest.raises(EngineError) as caught:
        check_outputs_finite("vae_decoder", compute_dtype, {"frames": bad})
    assert f"the network vae_decoder answered non-finite values in {compute_dtype}: frames: 2 of 3" in str(caught.value)
    assert advice in str(caught.value)

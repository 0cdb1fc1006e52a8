"""Karras sigmas and continuous timesteps against the reference's."""

from __future__ import annotations

import numpy as np
import pytest

from dispose_rt.contract import SchedulerConstants
from dispose_rt.errors import InputError
from dispose_rt.stages.denoise.scheduler import karras_schedule
from tests.every import each


def test_schedule_matches_golden_bit_for_bit(golden):
    arrays = golden("e2e")
    for case in arrays["cases"]:
        steps = int(arrays[f"{case}.config"][6])
        schedule = karras_schedule(steps, SchedulerConstants())
        np.testing.assert_array_equal(schedule.sigmas, arrays[f"{case}.sigmas"])
        np.testing.assert_array_equal(schedule.timesteps, arrays[f"{case}.timesteps"])
        assert schedule.init_noise_sigma == arrays[f"{case}.init_noise_sigma"]


def test_one_step_starts_at_the_largest_sigma_and_ends_at_zero():
    schedule = karras_schedule(1, SchedulerConstants())
    np.testing.assert_allclose(schedule.sigmas, [700, 0], rtol=1e-6)
    assert schedule.steps == 1


@each(steps=[2, 25, 100])
def test_sigmas_fall_from_the_largest_to_the_smallest(steps):
    sigmas = karras_schedule(steps, SchedulerConstants()).sigmas
    assert (np.diff(sigmas) < 0).all()
    np.testing.assert_allclose(sigmas[[0, -2]], [700, 0.002], rtol=1e-5)


def test_the_start_is_scaled_to_unit_variance():
    schedule = karras_schedule(3, SchedulerConstants())
    assert schedule.init_noise_sigma / schedule.input_divisor(0) == 1


def test_unsupported_constants_are_refused():
    with pytest.raises(InputError, match="epsilon"):
        SchedulerConstants(prediction_type="epsilon")
    with pytest.raises(InputError, match="rising"):
        SchedulerConstants(sigma_min=5, sigma_max=1)
    with pytest.raises(InputError, match="steps is 0"):
        karras_schedule(0, SchedulerConstants())

"""Draws by name: reproducible, independent, checked."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dispose_rt.errors import InputError
from dispose_rt.noise import draw_checked, seeded_noise
from tests.every import each


def test_a_name_draws_the_same_bits_whatever_was_drawn_before():
    first, second = seeded_noise(7), seeded_noise(7)
    second("image", (3, 4))
    np.testing.assert_array_equal(first("latents", (2, 5)), second("latents", (2, 5)))


def test_names_and_seeds_draw_different_numbers():
    draws = [seeded_noise(seed)(name, (64,)) for seed in (0, 1) for name in ("latents", "image", "dift_noise")]
    assert len({draw.tobytes() for draw in draws}) == 6


def test_draws_are_unit_normal():
    draw = seeded_noise(3)("latents", (100_000,))
    assert draw.dtype == np.float32
    assert abs(draw.mean()) < 0.02
    assert abs(draw.std() - 1) < 0.02


def test_another_process_draws_the_same_bits():
    code = "from dispose_rt.noise import seeded_noise; print(seeded_noise(5)('latents', (4,)).tobytes().hex())"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert printed == seeded_noise(5)("latents", (4,)).tobytes().hex()


@each(
    answer__words=[
        (np.zeros((2, 3), np.float32), "expected float32"),
        (np.zeros((2, 2), np.float64), "float64"),
        (np.full((2, 2), np.nan, np.float32), "non-finite"),
    ]
)
def test_a_callers_source_is_checked(answer, words):
    with pytest.raises(InputError, match=words):
        draw_checked(lambda name, shape: answer, "latents", (2, 2))

"""The Euler sampler of Stable Video Diffusion: Karras sigmas, continuous timesteps, v-prediction.

Karras et al. 2022 (arXiv:2206.00364), equation 5 for the sigmas and algorithm 1 without churn for the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...contract import SchedulerConstants
from ...errors import InputError
from ...types import F32

KARRAS_RHO = 7.0


@dataclass(frozen=True)
class Schedule:
    """Sigmas and timesteps of one run.

    Attributes:
        sigmas: float32 [steps + 1], falling from sigma_max to sigma_min, then 0.
        timesteps: float32 [steps], 0.25 ln sigma: the networks' input.
    """

    sigmas: F32
    timesteps: F32

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def init_noise_sigma(self) -> np.float32:
        """Standard deviation of the start: sqrt(sigma_max^2 + 1)."""
        return self.input_divisor(0)

    def input_divisor(self, step: int) -> np.float32:
        """What the latents are divided by before the networks read them: sqrt(sigma^2 + 1)."""
        return np.float32((float(self.sigmas[step]) ** 2 + 1) ** 0.5)


def karras_schedule(steps: int, constants: SchedulerConstants) -> Schedule:
    """Return the schedule for `steps` Euler steps.

    Raises:
        InputError: steps is below 1.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1")
    ramp = np.linspace(0, 1, steps)
    low, high = constants.sigma_min ** (1 / KARRAS_RHO), constants.sigma_max ** (1 / KARRAS_RHO)
    sigmas = ((high + ramp * (low - high)) ** KARRAS_RHO).astype(np.float32)
    timesteps = np.array([0.25 * np.log(float(sigma)) for sigma in sigmas], np.float32)
    return Schedule(np.append(sigmas, np.float32(0)), timesteps)

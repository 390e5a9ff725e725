"""What the numbers of an SDE must satisfy: each check names the argument, its value and the remedy."""

from __future__ import annotations

import math

from torch import Tensor


def positive(**values: float) -> None:
    """Raise ValueError unless every value is positive and finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}: pass a number above 0")


def interval(t_min: float, t_max: float) -> None:
    """Raise ValueError unless 0 <= t_min < t_max."""
    if not (math.isfinite(t_max) and 0 <= t_min < t_max):
        raise ValueError(f"t_min and t_max must satisfy 0 <= t_min < t_max, got {t_min} and {t_max}: data are at t = 0")


def levels(sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless 0 < sigma_min < sigma_max."""
    positive(sigma_min=sigma_min, sigma_max=sigma_max)
    if not sigma_min < sigma_max:
        raise ValueError(f"sigma_min must be below sigma_max, got {sigma_min} and {sigma_max}: exchange them")


def shaped(eps: Tensor, state: Tensor) -> None:
    """Raise ValueError unless noise is shaped as a state."""
    if eps.shape != state.shape:
        raise ValueError(
            f"eps has shape {tuple(eps.shape)}, the state of x0 {tuple(state.shape)}: pass randn_like(sde.state(x0))"
        )

r"""Correctors: Langevin steps at a fixed time, and their alternation with a predictor.

A Langevin step x + e score + sqrt(2 e) z leaves p_t invariant as e -> 0. With a fixed step it has a bias that no finer
time grid removes: on N(m, v) its stationary variance is v / (1 - e / (2 v)).

What `snr` means. In `Langevin` it is r in e = 2 (r |z| / |score|)^2: the ratio of the lengths of the drift and noise
parts of a step, sqrt(e / 2) |score| / |z|. In `AnnealedLangevin` it is r in e = 2 (r sigma_t)^2; the two agree where
|score| is its typical sqrt(d) / sigma_t.

Where papers and code differ (Song et al. 2021, 2011.13456, and its published code): algorithms 2 and 3 of the paper run
the predictor first, the code the corrector first; here the predictor is first. The code divides the norms' means over
the batch, so that a sample depends on its neighbours; here each sample has its own, as in the paper. In a few
dimensions |score| often comes near 0 and that step becomes long: prefer `AnnealedLangevin` there. For VP both multiply
e by alpha_i = 1 - beta_i, which tends to 1 on fine grids; here it is left out. `AnnealedLangevin` is the code's `ald`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, add

from sde.forward import SDE
from sde.random import Noise
from sde.shape import expand
from sde.solvers.solver import Solver, needs_model


class _Corrector(Solver):
    """A solver that stays at the time s; run alone it is annealed Langevin dynamics along the grid."""

    order, calls = 0.0, 1
    eta = 0.0
    endpoint = True

    def __init__(self, snr: float = 0.16) -> None:
        if not (math.isfinite(snr) and snr > 0):
            raise ValueError(f"snr must be positive, got {snr}: .16 is the paper's choice for CIFAR-10")
        self.snr = snr

    def check(self, sde: SDE) -> None:
        if needs_model(self, sde).model.coupled:
            raise ValueError(
                f"{type(self).__name__} needs a score, and this model was trained with a coupling: "
                "leave the corrector out, or train with coupling=None"
            )


class Langevin(_Corrector):
    """Langevin corrector whose step is set by the norms of score and noise: e = 2 (snr |z| / |score|)^2, per sample.

    Args:
        snr: Signal-to-noise ratio r of a step; the paper takes .16 for VE and VP on CIFAR-10.

    References:
        Song et al. (2021), 2011.13456, algorithms 4 and 5.

    Example:
        >>> import sde
        >>> sde.PredictorCorrector(sde.ReverseDiffusion(), sde.Langevin(snr=0.1)).calls
        2
    """

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        score, z = needs_model(self, sde).model(x, s).score, noise.fresh(x)
        ratio = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp_min(1e-12)
        e = expand(2 * (self.snr * ratio) ** 2, x)
        return x + e * score + (2 * e) ** 0.5 * z


class AnnealedLangevin(_Corrector):
    """Langevin corrector whose step follows the noise level: x + c L L' score + sqrt(2 c) L z, c = 2 snr^2.

    For a scalar SDE L = sigma_t, so that e = 2 (snr sigma_t)^2; a matrix SDE is preconditioned by its own noise.

    Args:
        snr: Step in units of the noise level.

    References:
        Song & Ermon (2019), 1907.05600, algorithm 1, where the step is proportional to sigma^2.

    Example:
        >>> import sde
        >>> sde.AnnealedLangevin(snr=0.1).snr
        0.1
    """

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        model, c = needs_model(self, sde).model, 2 * self.snr**2
        # L L' score = -L eps
        return x + model.sde.color(add(math.sqrt(2 * c) * noise.fresh(x), model(x, s).eps, alpha=-c), s)


class PredictorCorrector(Solver):
    """A predictor's step from t to s, then `steps` corrector steps at s.

    Args:
        predictor: Any solver.
        corrector: `Langevin` or `AnnealedLangevin` (default).
        steps: Corrector steps after each predictor step.

    References:
        Song et al. (2021), 2011.13456, algorithm 1.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
        >>> pc = sde.PredictorCorrector(sde.EulerMaruyama(), sde.AnnealedLangevin())
        >>> sde.sample(model, (8, 1), steps=10, solver=pc).shape
        torch.Size([8, 1])
    """

    def __init__(self, predictor: Solver, corrector: Solver | None = None, steps: int = 1) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}: leave PredictorCorrector out for none")
        self.predictor, self.corrector, self.steps = predictor, corrector or AnnealedLangevin(), steps

    @property
    def calls(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Model evaluations of predictor and corrector."""
        return self.predictor.calls + self.steps * self.corrector.calls

    @property
    def eta(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The predictor's."""
        return self.predictor.eta

    order = 0.0  # the corrector's bias does not shrink with the time step
    endpoint = True

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        return PredictorCorrector(self.predictor.start(sde, times), self.corrector.start(sde, times), self.steps)

    def stages(self, sde: SDE, times: Tensor) -> Sequence[Tensor]:  # noqa: D102
        return self.predictor.stages(sde, times)

    def stage(self, sde: SDE, t: float, s: float, k: int) -> Any:  # noqa: D102
        return self.predictor.stage(sde, t, s, k)

    def check(self, sde: SDE) -> None:  # noqa: D102
        self.predictor.check(sde)
        self.corrector.check(sde)

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        x = self.predictor.step(sde, x, t, s, noise)
        for _ in range(self.steps):
            x = self.corrector.step(sde, x, s, s, noise)
        return x

r"""DDRM: each singular direction of A is restored as what y says of it deserves.

In the coordinates of the singular vectors, with p = A^+ y, noise level n / s of p along a direction of singular value
s, and the state x_t = alpha x0 + sigma eps, a step to (alpha, sigma) draws x_s from a normal with

    directions           mean                                                    standard deviation
    unseen, s = 0        alpha x0 + sqrt(1 - eta^2) sigma eps                    eta sigma
    sigma s < alpha n    alpha x0 + sqrt(1 - eta^2) sigma (p - x0) / (n / s)     eta sigma
    sigma s >= alpha n   alpha ((1 - b) x0 + b p)                                sqrt(sigma^2 - (alpha b n / s)^2)

at the model's estimates x0 and eps; b is the paper's eta_b, and its x and sigma are x / alpha and sigma / alpha here.
All are functions of the singular values, and `LinearOperator.filter` applies them: neither U nor V is made.
"""

from __future__ import annotations

import math

from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.inverse.observation import Observation
from sde.inverse.replacement import Known
from sde.random import Noise
from sde.solvers import Solver
from sde.solvers.solver import needs_model


class DDRM(Solver):
    """Denoising diffusion restoration: DDIM in the singular directions of A, each drawn to what y says of it.

    Args:
        observation: Linear, with noise or without.
        eta: Share of fresh noise where y says less than the state, at most 1; .85 in the paper. It stands in the place
            of the reverse SDE's eta: `sample(..., eta=)` overrides it.
        eta_b: Weight of y where it says more; 1 in the paper.

    Raises:
        ValueError: If eta or eta_b is not in [0, 1]; from a run, for a matrix SDE, or if the observation fits neither
            method nor samples.

    References:
        Kawar, Elad, Ermon & Song (2022), 2201.11793, eq. 7 and 8.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[0.5, 0.0]]))
        >>> sde.sample(model, (4, 2), steps=20, solver=sde.inverse.DDRM(observation))[:, 0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """

    order = 0.0
    ends = True

    def __init__(self, observation: Observation, eta: float = 0.85, eta_b: float = 1.0) -> None:
        for name, value in (("eta", eta), ("eta_b", eta_b)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}: the paper takes eta=.85, eta_b=1")
        self.observation, self.eta, self.eta_b = observation, float(eta), float(eta_b)
        self.first: float | None = None
        self.last: float | None = None
        self.known: Known | None = None

    def check(self, sde: SDE) -> None:  # noqa: D102
        reverse = needs_model(self, sde)
        if not isinstance(reverse.model.sde, ScalarSDE):
            raise ValueError(f"DDRM needs a scalar SDE, got {type(reverse.model.sde).__name__}: use VP, say")
        if reverse.eta > 1:
            raise ValueError(f"DDRM takes eta up to 1, where all of eps is drawn anew, got eta={reverse.eta}: use .85")
        self.observation.check_linear("DDRM")

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        if times[-1] > times[0]:
            raise ValueError(f"DDRM goes down in time, got times up to {float(times[-1]):g}: use times.flip(0)")
        fresh = DDRM(self.observation, self.eta, self.eta_b)
        fresh.first, fresh.last = float(times[0]), float(times[-1])
        return fresh

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        reverse = needs_model(self, sde)
        forward = reverse.scalar
        assert forward is not None
        if self.known is None:
            self.known = Known(self.observation, x)
        if float(t) == self.first:  # from the prior, and from y where it says more
            alpha, sigma = (float(c) for c in forward.levels(t))
            x = self.known.joined(x, alpha, sigma, noise.fresh(x))
        point, (alpha, sigma) = reverse.model(x, t), (float(c) for c in forward.levels(s))
        x = self.moved(self.known, point.x0, point.eps, alpha, sigma, reverse.eta, noise.normal(x, t, s))
        return self.known.kept(x) if float(s) == self.last else x

    def moved(self, known: Known, x0: Tensor, eps: Tensor, alpha: float, sigma: float, eta: float, z: Tensor) -> Tensor:
        """The state at (alpha, sigma) from endpoints and the standard normal z."""
        f, p, n, held = known.operator.filter, known.p, known.noise, math.sqrt(1 - eta**2) * sigma
        seen = lambda s: (s > known.low).to(s)  # noqa: E731
        better = lambda s: seen(s) * (sigma * s >= alpha * n).to(s)  # noqa: E731
        worse = lambda s: seen(s) - better(s)  # noqa: E731
        pull = lambda s: worse(s) * held * s / (n or 1.0) + better(s) * alpha * self.eta_b  # noqa: E731

        def spread(s: Tensor) -> Tensor:
            sharp = (sigma**2 - (alpha * self.eta_b * n / s.clamp_min(known.low)) ** 2).clamp_min(0).sqrt()
            return better(s) * sharp + (1 - better(s)) * eta * sigma

        return (
            f(x0, lambda s: alpha - pull(s)) + f(eps, lambda s: (1 - seen(s)) * held) + f(p, pull) + f(z, spread)
        )  # fmt: skip

r"""Replacement: at each noise level the observed part of the state is put in place of the solver's own.

What y says of x0 is p = A^+ y, on the directions that A sees: along one of singular value s, p = x0 + (noise / s) n. So
the same part of the state x_t = alpha x0 + sigma eps is, in law,

    alpha p + sqrt(sigma^2 - (alpha noise / s)^2) z        where sigma s >= alpha noise,

and below that level, where y knows less than the state, the state is left to the solver. With noise = 0 the observed
part is that of a forward draw of p to the end, and p itself at the end. For pixels this is the replacement of the
papers; for another linear A it is the orthogonal projection x + A^+ (A x_t(p) - A x).

The rest of the state never hears of y but through the model at the next step, which takes the joined state for a draw
of its own. So the method is biased: a particle whose rest had gone astray before y could show is neither turned nor
weighed down. It is exact where y sees all of x0, and where the parts of x0 are independent.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from sde.forward import SDE, ForwardSDE, MatrixSDE, ScalarSDE
from sde.inverse.observation import Observation
from sde.inverse.operator import RANK, LinearOperator
from sde.random import Noise
from sde.solvers import DDIM, GDDIM, Adams, MatrixAdams, PredictorCorrector, SelfPaced, Solver
from sde.solvers.exponential.logsnr import LogSNRRule
from sde.solvers.solver import needs_model


def check_one_step(method: str, solver: Solver) -> None:
    """Raise ValueError for a solver that remembers a path which the method breaks off at each step."""
    rule = solver.predictor if isinstance(solver, PredictorCorrector) else solver
    multistep = isinstance(rule, (Adams, MatrixAdams)) or (isinstance(rule, LogSNRRule) and rule.multistep)
    if isinstance(rule, SelfPaced) or multistep or (isinstance(rule, GDDIM) and rule.k > 1):
        why = "chooses its own steps" if isinstance(rule, SelfPaced) else "remembers earlier steps"
        raise ValueError(
            f"{method} changes the state after each step, and {type(rule).__name__} {why}: use a one-step solver, "
            "Ancestral(), Heun() or DDIM(), say"
        )


class Known:
    r"""What an observation says of a state, in the singular directions of its operator; made once for a run.

    Args:
        observation: Linear.
        x0_like: A sample, for shape (B, \*D), dtype and device.

    Attributes:
        p: A^+ y, one for all samples or one for each.

    Raises:
        ValueError: If the operator or the observations do not fit the samples.
    """

    def __init__(self, observation: Observation, x0_like: Tensor) -> None:
        observation.residual(x0_like)  # refuses what does not fit
        self.operator, self.noise = cast(LinearOperator, observation.operator), observation.noise
        self.low = RANK * self.operator.norm
        self.p = self.operator.pinv(observation.y.to(x0_like))

    def kept(self, x0: Tensor) -> Tensor:
        """The sample with p for what is observed, where there is no noise."""
        if self.noise > 0:
            return x0
        seen = lambda s: (s > self.low).to(s)  # noqa: E731
        return self.operator.filter(x0, lambda s: 1 - seen(s)) + self.operator.filter(self.p, seen)

    def joined(self, x: Tensor, alpha: float, sigma: float, z: Tensor) -> Tensor:
        """The state of a scalar SDE with what is observed, noised from z, in place of its own."""

        def seen(s: Tensor) -> Tensor:
            return ((s > self.low) & (sigma * s >= alpha * self.noise)).to(s)

        def spread(s: Tensor) -> Tensor:
            return seen(s) * (sigma**2 - (alpha * self.noise / s.clamp_min(self.low)) ** 2).clamp_min(0).sqrt()

        rest, f = self.operator.filter(x, lambda s: 1 - seen(s)), self.operator.filter
        if self.noise == 0:
            return rest + f(alpha * self.p + sigma * z, seen)
        return rest + f(alpha * self.p, seen) + f(z, spread)


class Replacement(Solver):
    """A solver's step, then the observed part of the state in place of its own.

    x_s <- (I - V V') x_s + V V' (alpha_s A^+ y + sigma_s z), V the directions that A sees; with an observation's own
    noise less is added. At the last time of a grid and without noise the observed part is that of y itself.

    Args:
        solver: A one-step solver; the noisy ones (`Ancestral`) bring the rest in line with what is observed better.
        observation: Linear; with noise for scalar SDEs only.
        fixed: One z for the whole run, so that the observed part follows a path, in place of a fresh one each step.

    Raises:
        ValueError: From a run, if the solver remembers its path, or the observation fits neither method nor samples.

    References:
        Song et al. (2021), 2011.13456, appendix I; with the noise of y along singular directions: Kawar, Vaksman & Elad
        (2021), 2105.14951.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[0.5, 0.0]]))
        >>> x = sde.sample(model, (4, 2), solver=sde.inverse.Replacement(sde.Ancestral(), observation))
        >>> x[:, 0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """

    order = 0.0
    ends = True

    def __init__(self, solver: Solver, observation: Observation, fixed: bool = False) -> None:
        self.solver, self.observation, self.fixed = solver, observation, fixed
        self.first: float | None = None
        self.last: float | None = None
        self.known: Known | None = None
        self.z: Tensor | None = None

    @property
    def calls(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's."""
        return self.solver.calls

    @property
    def eta(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's."""
        return self.solver.eta

    def check(self, sde: SDE) -> None:  # noqa: D102
        forward, name = needs_model(self, sde).model.sde, type(self).__name__
        check_one_step(name, self.solver)
        self.solver.check(sde)
        self.observation.check_linear(name)
        if self.observation.noise > 0 and not isinstance(forward, ScalarSDE):
            raise ValueError(
                f"{name} with a noisy observation needs a scalar SDE, got {type(forward).__name__} and "
                f"noise={self.observation.noise:g}: use VP, say, or noise=0"
            )

    def start(self, sde: SDE, times: Tensor) -> Solver:  # noqa: D102
        if times[-1] > times[0]:
            raise ValueError(
                f"{type(self).__name__} goes down in time, got times from {float(times[0]):g} up to "
                f"{float(times[-1]):g}: use its solver"
            )
        fresh = Replacement(self.solver.start(sde, times), self.observation, self.fixed)
        fresh.first, fresh.last = float(times[0]), float(times[-1])
        return fresh

    def stages(self, sde: SDE, times: Tensor) -> Any:  # noqa: D102
        return self.solver.stages(sde, times)

    def stage(self, sde: SDE, t: float, s: float, k: int) -> Any:  # noqa: D102
        return self.solver.stage(sde, t, s, k)

    def step(self, sde: SDE, x: Tensor, t: float, s: float, noise: Noise) -> Tensor:  # noqa: D102
        forward, rule = needs_model(self, sde).model.sde, self.solver
        if float(t) == self.first:
            x = self.replaced(forward, x, t, noise)
        if not rule.ends and (sde.singular(t) or (rule.endpoint and sde.singular(s))):
            rule = DDIM()
        x = rule.step(sde, x, t, s, noise)
        return self.finished(forward, x, s, noise) if float(s) == self.last else self.replaced(forward, x, s, noise)

    def replaced(self, forward: ForwardSDE, x: Tensor, t: float, noise: Noise) -> Tensor:
        """The state at t with the observed part of its law given y."""
        if not self.fixed or self.z is None:
            self.z = noise.fresh(x)
        if isinstance(forward, ScalarSDE):
            alpha, sigma = (float(c) for c in forward.levels(t))
            return self._known(x).joined(x, alpha, sigma, self.z)
        known = self._known(x[:, 0])
        return _by_channel(known, x, forward.mixed(known.p.expand_as(x[:, 0]), t, self.z))

    def finished(self, forward: ForwardSDE, x: Tensor, t: float, noise: Noise) -> Tensor:
        """The state at the last time, taken for data: with y itself where it has no noise."""
        if isinstance(forward, ScalarSDE):
            return self._known(x).kept(x)
        assert isinstance(forward, MatrixSDE)
        known, e = self._known(x[:, 0]), torch.tensor(forward.embed).to(x).view(-1, *[1] * (x.ndim - 2))
        x = self.replaced(forward, x, t, noise)  # the other channels' noise, and none in the data's
        return _by_channel(known, x, x + e * (known.p[:, None] - (e * x).sum(1, keepdim=True) / e.square().sum()))

    def _known(self, x0_like: Tensor) -> Known:
        if self.known is None or len(self.known.p) not in (1, len(x0_like)):
            self.known = Known(self.observation, x0_like)
        return self.known


def _by_channel(known: Known, x: Tensor, target: Tensor) -> Tensor:
    """The state of a matrix SDE (B, K, *D) with the observed part of another; A sees each channel alike."""
    seen = lambda s: (s > known.low).to(s)  # noqa: E731
    f = known.operator.filter
    return (f(x.flatten(0, 1), lambda s: 1 - seen(s)) + f(target.flatten(0, 1), seen)).view_as(x)

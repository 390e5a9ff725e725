r"""Split Gibbs: y and the model take turns on two copies of x0, a distance rho apart that shrinks.

With x for the model and z for y, the pair is drawn from p(x) exp(-|x - z|^2 / (2 rho^2)) l(y | z), one at a time:

    z | x   ~ l(y | z) N(z; x, rho^2)    = x + w (A^+ y - x) + rho sqrt(1 - w) n,    w(s) a function of singular values
    x | z   ~ p(x) N(z; x, rho^2)        = the reverse SDE from the state z of noise level rho = sigma / alpha

Both are exact for a linear A, as far as the reverse SDE is solved. With the observation's own l = N(y; A z, noise^2) as
published, w = rho^2 s^2 / (rho^2 s^2 + noise^2), and x is in the end distributed as if the noise in y had the variance

    noise^2 + rho^2 s^2         published: the bias goes with rho;
    max(noise^2, rho^2 s^2)     with l of variance max(noise^2 - rho^2 s^2, 0), where w = min(rho^2 s^2 / noise^2, 1),

as z already strays from x by rho. So the second is exact at any rho <= noise / max s, where the chain may stay and move
by steps of that size; without noise both tend to the posterior with rho. The times of the grid give the rhos, from the
largest, where one turn forgets the past, down to that bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.inverse.observation import Observation
from sde.inverse.repaint import Anew
from sde.inverse.replacement import Known
from sde.nodes import Table
from sde.random import Noise
from sde.solvers import SASolver, SelfPaced, Solver, State
from sde.solvers.grids import CAP
from sde.solvers.integrate import walk
from sde.solvers.ratio import TimeOfRatio
from sde.solvers.reverse import ReverseSDE
from sde.solvers.solver import needs_model
from sde.solvers.stochastic.churn import ratio


class SplitGibbs(SelfPaced):
    """Split Gibbs sampler (plug-and-play diffusion): at each time of the grid a draw by the model, then one by y.

    Args:
        observation: Linear; without noise z is projected on it, and so is the sample in the end.
        solver: Of the reverse SDE, any that takes noise. Default: `SASolver(2)`; `Heun` is closer where its steps are
            short, and explodes on `EDM` where they are not.
        steps: Its steps in each turn, down to a tenth of the next rho; the last turn makes one more, to the last time.
        rho: Least coupling, in units of the data. Default: the observation's noise over the operator's norm, the most
            that is exact; a grid that ends above it ends there.
        exact: Whether y is given the noise that rho leaves of it; False as published.

    A state at a time of the grid is z, noised by rho; the last is x. `State.calls` counts all evaluations, and the
    attribute `calls` those of a step of the grid.

    Raises:
        ValueError: If steps is below 1 or rho negative; from a run, for a matrix SDE or eta=0, or if the observation
            fits neither method nor samples.

    References:
        Vono, Dobigeon & Chainais (2019), 1804.05809; Coeurdoux, Dobigeon & Chainais (2023), 2304.11134; Wu et al.
        (2024), 2405.18782, algorithm 1 (PnP-DM); Xu & Chi (2024), 2403.17042; Zhang et al. (2024), 2407.01521 for the
        annealing by the times of the grid; for l of less noise Marnissi et al. (2018), Entropy 20(2), 110.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[0.5, 0.0]]), noise=0.3)
        >>> gibbs = sde.inverse.SplitGibbs(observation)
        >>> x = sde.sample(model, (1000, 2), solver=gibbs, generator=torch.Generator().manual_seed(0))
        >>> round(x[:, 0].mean().item(), 1)  # .5 / (1 + .3^2)
        0.5
    """

    order = 0.0
    eta = 1.0

    def __init__(
        self,
        observation: Observation,
        solver: Solver | None = None,
        steps: int = 4,
        rho: float | None = None,
        exact: bool = True,
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}: pass steps=4, say")
        if rho is not None and not (math.isfinite(rho) and rho >= 0):
            raise ValueError(f"rho must be 0 or more, got {rho}: the observation's noise is a good one")
        self.observation, self.solver, self.steps, self.rho, self.exact = (
            observation, solver or SASolver(2), steps, rho, exact,
        )  # fmt: skip

    @property
    def calls(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The solver's, times its steps."""
        return self.steps * self.solver.calls

    def check(self, sde: SDE) -> None:  # noqa: D102
        reverse = needs_model(self, sde)
        if not isinstance(reverse.model.sde, ScalarSDE):
            raise ValueError(f"SplitGibbs needs a scalar SDE, got {type(reverse.model.sde).__name__}: use VP, say")
        if reverse.eta == 0:
            raise ValueError("SplitGibbs draws x given z by the reverse SDE, got eta=0, which draws nothing: use eta=1")
        self.observation.check_linear("SplitGibbs")
        self.solver.check(sde)

    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:  # noqa: D102
        reverse, known = needs_model(self, sde), Known(self.observation, x)
        forward, anew = reverse.scalar, Anew(noise)
        assert forward is not None
        floor = self.observation.noise / known.operator.norm if self.rho is None else self.rho
        time = TimeOfRatio(forward, float(times[-1]), float(times[0]))
        taus = torch.maximum(times[:-1], time(torch.tensor([floor], dtype=torch.float64)))
        alphas, sigmas = (torch.as_tensor(c).tolist() for c in forward.levels(taus))
        state, stretch, table = State(float(times[0]), x, 0), times[:0], None
        yield state
        for i, s in enumerate(times[1:].tolist()):
            final = i + 1 == len(taus)
            ahead = taus[min(i + 1, len(taus) - 1)]
            if table is None or final or not taus[i - 1] == taus[i] == ahead:
                stretch = self.stretch(reverse, time, taus[i], ahead, times[-1], final)
                table = Table(stretch, self.solver.stages(sde, stretch))
            *_, now = walk(sde, state.x, stretch, self.solver.start(sde, stretch), anew, table)
            if not final:
                x0 = forward.unmean(now.x, stretch[-1])
                alpha, sigma = alphas[i + 1], sigmas[i + 1]
                x = alpha * self.turn(known, x0, sigma / alpha, noise.fresh(x))
            else:
                x = known.kept(now.x)
            state = State(s, x, state.calls + now.calls)
            yield state

    def turn(self, known: Known, x: Tensor, rho: float, n: Tensor) -> Tensor:
        """A draw of z given x and y, from the standard normal n."""
        noise2 = known.noise**2

        def w(s: Tensor) -> Tensor:
            near = (rho * s) ** 2
            part = near / (noise2 if self.exact else near + noise2) if noise2 else torch.ones_like(s)
            return torch.where(s > known.low, part.clamp_max(1.0), 0.0)

        f = known.operator.filter
        return x + f(known.p - x, w) + f(rho * n, lambda s: (1 - w(s)).sqrt())

    def stretch(
        self, reverse: ReverseSDE, time: TimeOfRatio, tau: Tensor, ahead: Tensor, last: Tensor, final: bool
    ) -> Tensor:
        """Times of the reverse SDE from tau: equal steps in (sigma / alpha)^(1/7), an infinite ratio cut.

        A turn ends at a tenth of the rho ahead: what noise is left is a hundredth of the variance that z gets.
        """
        levels = ratio(time.sde, torch.stack([tau, ahead, last])).clamp_max(CAP * reverse.model.data_scale())
        high, near, low = levels.tolist()
        down = torch.linspace(high ** (1 / 7), max(low, near / 10) ** (1 / 7), self.steps + 1, dtype=torch.float64)
        grid = time(down**7)
        grid[0] = tau
        if low >= near / 10:
            grid[-1] = last
            return grid
        return torch.cat([grid, last[None]]) if final else grid

r"""Twisted diffusion sampler: sequential Monte Carlo towards the posterior, exact in the limit of many particles.

Ancestral steps x_s ~ p(x_s | x_t) = N(m, v) of an unconditional run make a chain whose end x_0 has the model's
distribution. Its posterior given y is reached by particles with weights. At each time the twist

    g_t(x_t) = N(y; A x0(x_t), noise^2 + r_t^2 A A'),    r_t^2 = a^2 sigma^2 / (alpha^2 a^2 + sigma^2)

guesses what y says of the state (a the data's scale, r_t^2 the variance of x0 given x_t for Gaussian data), and g_0 is
the likelihood itself. With G = (alpha_t / alpha_s) grad log g_t:

    x_T ~ p_T,  w = g_T(x_T)
    for each step from t to s:
        draw particles anew in proportion to w, where 1 / sum w^2 is below half of their number
        x_s ~ N(m + v G, v),    w <- w  p(x_s | x_t) / N(x_s; m + v G, v)  g_s(x_s) / g_t(x_t)

The twists cancel along a path, so that any g_t gives the same limit; a good one keeps the weights even. The product of
the means of w between resamplings is an unbiased estimate of p(y) under the chain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sde.forward import SDE, ScalarSDE
from sde.forward.scalar import root
from sde.inverse.observation import Observation
from sde.inverse.operator import LinearOperator
from sde.nodes import Table
from sde.random import Generator, Noise, WhiteNoise, rand
from sde.score import Model
from sde.shape import Coefficient, sum_event
from sde.solvers import ReverseSDE, SelfPaced, State, default_times
from sde.solvers.integrate import checked_times
from sde.solvers.solver import needs_model


class Particles(NamedTuple):
    r"""Weighted particles, a group for each sample.

    Args:
        x: (B, P, \*D).
        log_weights: Normalised in each group, (B, P).
        log_evidence: Log of the estimate of p(y), (B,).
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor

    def draw(self, u: Tensor) -> Tensor:
        r"""One particle of each group in proportion to the weights, from uniform u (B,): (B, \*D)."""
        return _taken(self.x, _indices(self.log_weights, u[:, None]))[:, 0]


class TDS(SelfPaced):
    r"""Twisted diffusion sampler: a group of particles for each sample, one of which is drawn in the end.

    Args:
        observation: Noisy; its operator may be any differentiable function, with a better twist if linear.
        particles: P, in each group. The bias falls with 1 / P, memory and evaluations go with P.
        threshold: Part of P below which the effective number of particles 1 / sum w^2 asks for resampling.

    Each particle costs an evaluation and a backward pass in each step. A recorded state is the first particle of each
    group, the last a draw by weights: samples are independent of each other. `particles_of` returns all of them.

    Raises:
        ValueError: If particles is below 1 or threshold not in [0, 1]; from a run, for a matrix SDE, eta not in (0, 1]
            or an observation without noise, or one that does not fit the samples.

    References:
        Wu, Trippe, Naesseth, Blei & Cunningham (2023), 2306.17775, algorithm 1; its twist widened as in Song, Vahdat,
        Mardani & Kautz (2023), openreview 9_gsMA8MRKQ.

    Example:
        >>> import torch, sde
        >>> model = sde.ExactScore(sde.Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]]), sde.VP())
        >>> seen = sde.inverse.Mask(torch.tensor([True, False]))
        >>> observation = sde.inverse.Observation(seen, torch.tensor([[0.5, 0.0]]), noise=0.3)
        >>> tds = sde.inverse.TDS(observation, particles=8)
        >>> x = sde.sample(model, (500, 2), solver=tds, generator=torch.Generator().manual_seed(0))
        >>> round(x[:, 0].mean().item(), 1)  # .5 / (1 + .3^2)
        0.5
    """

    order = 0.0
    eta = 1.0

    def __init__(self, observation: Observation, particles: int = 16, threshold: float = 0.5) -> None:
        if isinstance(particles, bool) or not isinstance(particles, int) or particles < 1:
            raise ValueError(f"particles must be a whole number of at least 1, got {particles!r}: pass 16, say")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}: .5 is usual")
        self.observation, self.particles, self.threshold = observation, particles, threshold

    @property
    def calls(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One for each particle."""
        return self.particles

    def check(self, sde: SDE) -> None:  # noqa: D102
        reverse = needs_model(self, sde)
        if not isinstance(reverse.model.sde, ScalarSDE):
            raise ValueError(f"TDS needs a scalar SDE, got {type(reverse.model.sde).__name__}: use VP, say")
        if not 0 < reverse.eta <= 1:
            raise ValueError(f"TDS weighs draws of ancestral steps, got eta={reverse.eta}: use 0 < eta <= 1")
        self.observation.check_noisy("TDS")

    def run(self, sde: SDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[State]:  # noqa: D102
        reverse, calls = needs_model(self, sde), 0
        yield State(float(times[0]), x, calls)
        first = x
        for s, swarm in self._swarm(reverse, self._begin(reverse, first, noise), times, noise):
            calls += self.particles
            last = s == float(times[-1])
            x = (
                swarm.draw(rand((len(first),), noise.generator, dtype=x.dtype, device=x.device))
                if last
                else swarm.x[:, 0]
            )
            yield State(s, x, calls)

    @torch.no_grad()
    def particles_of(
        self,
        model: Model,
        shape: Sequence[int],
        steps: int = 32,
        times: Tensor | Sequence[float] | None = None,
        generator: Generator = None,
    ) -> Particles:
        r"""All particles of a run, with their weights and the estimates of p(y); arguments as `sample`.

        Args:
            model: Score model.
            shape: (B, \*D): B groups.
            steps: Number of steps; ignored where times are given.
            times: Grid from t_max down.
            generator: One generator, or one for each group.

        Example:
            >>> import torch, sde
            >>> model = sde.ExactScore(sde.Gaussian([0.0], 1.0), sde.VP())
            >>> seen = sde.inverse.Mask(torch.tensor([True]))
            >>> tds = sde.inverse.TDS(sde.inverse.Observation(seen, torch.tensor([[0.5]]), noise=1.0), particles=200)
            >>> swarm = tds.particles_of(model, (1, 1), generator=torch.Generator().manual_seed(0))
            >>> round(swarm.log_evidence.exp().item(), 1)  # N(.5; 0, 2) = .27
            0.3
        """
        reverse, noise = ReverseSDE(model, self.eta), WhiteNoise(generator)
        self.check(reverse)
        grid = checked_times(reverse, default_times(model, steps) if times is None else times)
        device, dtype = model.placement()
        x = model.prior(torch.empty(tuple(shape), device=device, dtype=dtype), generator)
        *_, (_, swarm) = self._swarm(reverse, self._begin(reverse, x, noise), grid, noise)
        return swarm

    def _begin(self, reverse: ReverseSDE, x: Tensor, noise: Noise) -> Tensor:
        """Particles (B, P, *D) at the first time: the state that was given, and more of the prior."""
        self.observation.residual(x)  # refuses what does not fit
        extra, g = self.particles - 1, noise.generator
        if not extra:
            return x[:, None]
        each = [one for one in g for _ in range(extra)] if isinstance(g, Sequence) else g
        more = reverse.model.prior(x.repeat_interleave(extra, 0), each)
        return torch.cat([x[:, None], more.unflatten(0, (len(x), extra))], 1)

    def _swarm(self, reverse: ReverseSDE, x: Tensor, times: Tensor, noise: Noise) -> Iterator[tuple[float, Particles]]:
        """The algorithm box: the time and the particles after each step."""
        forward, (b, p) = reverse.scalar, x.shape[:2]
        assert forward is not None
        nodes = Table(times).nodes if reverse.tabulates else list(times)
        log_w, log_z, before = x.new_zeros(b, p), x.new_zeros(b), x.new_zeros(b, p)
        for t, s in pairwise(nodes):
            (alpha_t, _), (alpha, sigma) = forward.levels(t), forward.levels(s)
            v = reverse.eta**2 * forward.bridge_pair(x, t, s)[1]
            mean, log_g, grad = self._twisted(reverse.model, x, t, alpha, root(sigma**2 - v))
            log_w = log_w + log_g - before
            if p > 1:
                log_w, log_z, (mean, log_g, grad) = self._resampled(log_w, log_z, (mean, log_g, grad), noise)
            z, pull = noise.fresh(mean), grad * (alpha_t / alpha)
            x = mean + v * pull + root(v) * z
            log_w, before = log_w - (pull * (v / 2 * pull + root(v) * z)).flatten(2).sum(2), log_g
            now = log_w - before + self._likelihood(x)
            total = torch.logsumexp(now, 1)
            yield float(s), Particles(x, now - total[:, None], log_z + total - math.log(p))

    def _twisted(
        self, model: Model, x: Tensor, t: float | Tensor, alpha: Coefficient, held: Coefficient
    ) -> tuple[Tensor, Tensor, Tensor]:
        """alpha x0 + held eps at the model's estimates (B, P, *D), log g_t (B, P) and its gradient."""
        forward, (b, p), a = model.sde, x.shape[:2], model.data_scale()
        assert isinstance(forward, ScalarSDE)
        alpha_t, sigma_t = (float(c) for c in forward.levels(t))
        variance = (a * sigma_t) ** 2 / ((alpha_t * a) ** 2 + sigma_t**2)
        with torch.enable_grad():
            state = x.flatten(0, 1).detach().requires_grad_()
            point = model(state, t)
            r, operator, noise = self._residual(point.x0, p), self.observation.operator, self.observation.noise
            linear = isinstance(operator, LinearOperator)
            u = operator.solve(r, variance, noise) if linear else r / (variance + noise**2)
            log_g = -sum_event(r * u) / 2
            (grad,) = torch.autograd.grad(log_g.sum(), state, materialize_grads=True, allow_unused=True)
        mean = point.combine(alpha, held).detach()
        return mean.view_as(x), log_g.detach().view(b, p), grad.view_as(x)

    def _residual(self, x0: Tensor, p: int) -> Tensor:
        y = self.observation.y.to(x0)
        return (y.repeat_interleave(p, 0) if len(y) > 1 else y) - self.observation.operator(x0)

    def _likelihood(self, x: Tensor) -> Tensor:
        """Log p(y | x0) of particles taken for data: (B, P)."""
        noise, r = self.observation.noise, self._residual(x.flatten(0, 1), x.shape[1]).flatten(1)
        log_p = -((r / noise) ** 2) / 2 - math.log(noise * math.sqrt(2 * math.pi))
        return log_p.sum(1).view(x.shape[:2])

    def _resampled(
        self, log_w: Tensor, log_z: Tensor, swarm: tuple[Tensor, Tensor, Tensor], noise: Noise
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Groups of uneven weights drawn anew, with even ones; the others as they are."""
        (b, p), total = log_w.shape, torch.logsumexp(log_w, 1, keepdim=True)
        share = log_w - total
        uneven = torch.exp(-torch.logsumexp(2 * share, 1, keepdim=True)) < self.threshold * p
        u = rand((b,), noise.generator, dtype=log_w.dtype, device=log_w.device)
        places = (u[:, None] + torch.arange(p, device=u.device)) / p  # systematic: one u for all
        chosen = torch.where(uneven, _indices(share, places), torch.arange(p, device=u.device))
        log_z = log_z + torch.where(uneven, total - math.log(p), 0.0)[:, 0]
        mean, log_g, grad = (_taken(v, chosen) for v in swarm)
        return torch.where(uneven, 0.0, log_w), log_z, (mean, log_g, grad)


def _indices(log_weights: Tensor, places: Tensor) -> Tensor:
    """Of the particles at places (B, N) in [0, 1) along the weights of each group, (B, P)."""
    return torch.searchsorted(log_weights.exp().cumsum(1), places).clamp_max(log_weights.shape[1] - 1)


def _taken(v: Tensor, chosen: Tensor) -> Tensor:
    """The chosen particles of each group: (B, N, ...) of (B, P, ...)."""
    return v[torch.arange(len(v), device=v.device)[:, None], chosen]

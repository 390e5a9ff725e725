r"""How much the gradient of an objective scatters, at each time.

Stochastic gradient descent sees g_1, g_2, ... in place of E g. For n independent gradients with Gram matrix K = G G',

    |E g|^2  ~  U = sum_{i != j} K_ij / (n (n - 1)),        tr Cov g  ~  sum_i K_ii / n - U,

both without bias, and their standard errors by the jackknife. A gradient of a batch of B data has a B-th of the
variance of one datum's, which is what is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde.random import randn_like
from sde.score import ScoreModel
from sde.train.loss import Weight
from sde.train.objectives import Objective


@dataclass(frozen=True)
class Variances:
    """Gradients of objectives by time: what `sde.plot.variances` draws.

    Attributes:
        t: Times, (T,).
        variance: By objective, trace of the covariance of the gradient of one datum's loss, (T,).
        variance_error: Its standard error.
        mean: By objective, squared length of the mean gradient, (T,); an estimate, which may fall below 0.
        mean_error: Its standard error.
    """

    t: Tensor
    variance: dict[str, Tensor]
    variance_error: dict[str, Tensor]
    mean: dict[str, Tensor]
    mean_error: dict[str, Tensor]


def gradient_variance(
    model: ScoreModel,
    data: Tensor,
    objectives: Mapping[str, Objective],
    times: Tensor,
    draws: int = 64,
    batch: int = 64,
    weight: Weight | None = None,
    generator: torch.Generator | None = None,
) -> Variances:
    r"""Mean and variance of the gradient by all weights of the network, of each objective at each time.

    All objectives see the same data and noise. The network is left as it is: measure it before training, or after.

    Args:
        model: Score model.
        data: (N, \*D), drawn from with replacement.
        objectives: Name to objective.
        times: (T,).
        draws: Independent gradients at each time.
        batch: Data in each; a coupling acts inside it.
        weight: One weight for all, to compare losses, as `sde.train.noise`; None for each objective's own.
        generator: For data, noise and slices.

    Raises:
        ValueError: If there are fewer than four draws, as two are the least for a variance and four for its error.

    References:
        Song, Garg, Shi & Ermon (2019), 1905.07088, section 4, on the variance of sliced and denoising matching.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
        >>> losses = {"denoising": sde.train.Denoising(), "sliced": sde.train.Sliced()}
        >>> found = sde.train.gradient_variance(
        ...     model, torch.randn(100, 2), losses, torch.tensor([0.1, 0.9]), draws=8, weight=sde.train.noise
        ... )
        >>> found.variance["sliced"].shape
        torch.Size([2])
    """
    if draws < 4:
        raise ValueError(f"draws must be at least 4, got {draws}: pass draws=64, say")
    if times.ndim != 1 or not len(objectives):
        raise ValueError(f"times must be (T,) and objectives some, got {tuple(times.shape)} and {len(objectives)}")
    if weight is not None:
        objectives = {name: replace(o, weight=weight) for name, o in objectives.items()}
    found = [_at(model, data, objectives, t, draws, batch, generator) for t in times]
    columns = {name: torch.tensor([row[name] for row in found], dtype=torch.float64) for name in objectives}
    parts = [{name: column[:, i] for name, column in columns.items()} for i in range(4)]
    return Variances(times.detach().cpu(), *parts)


def _at(
    model: ScoreModel,
    data: Tensor,
    objectives: Mapping[str, Objective],
    t: Tensor,
    draws: int,
    batch: int,
    generator: torch.Generator | None,
) -> dict[str, tuple[float, float, float, float]]:
    """Variance, its error, squared mean, its error at one time."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients: dict[str, list[Tensor]] = {name: [] for name in objectives}
    device = generator.device if generator else "cpu"
    for _ in range(draws):
        x0 = data[torch.randint(len(data), (batch,), generator=generator, device=device).to(data.device)]
        eps = randn_like(x0, generator)
        for name, objective in objectives.items():
            loss = objective(model, x0, t.to(x0.device).expand(batch), eps, generator)
            parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            gradients[name].append(torch.cat([p.flatten() for p in parts]))
    return {name: _moments(torch.stack(g).double(), batch) for name, g in gradients.items()}


def _moments(g: Tensor, batch: int) -> tuple[float, float, float, float]:
    """From the gradients (n, P): tr Cov of one datum's, its error, |E g|^2, its error."""
    n, gram = len(g), g @ g.T
    own = gram.diagonal()
    cross = gram.sum(1) - own
    u, v = cross.sum() / (n * (n - 1)), own.mean()
    left_u = (cross.sum() - 2 * cross) / ((n - 1) * (n - 2))
    left_v = (own.sum() - own) / (n - 1)

    def error(left: Tensor) -> float:
        return float(((n - 1) / n * (left - left.mean()).square().sum()).sqrt())

    return float(v - u) * batch, error(left_v - left_u) * batch, float(u), error(left_u)

r"""Models made of several: products and mixtures of what they say.

Product. Experts p_i that share a part p_b, each a refinement of it, ask together for p_b prod (p_i / p_b)^w_i. At each
time t

    score = s_b + sum_i w_i (s_i - s_b),

and so for x0, eps and velocity. Without p_b the w_i must sum to 1, or noise would be counted several times. The product
of noised densities is not the noised product (Gaussians of one covariance apart), so that a sampler along it is off,
unless a corrector brings the state to the product at each t (Du et al. 2023).

Mixture. p = sum_i w_i p_i has the score sum_i r_i s_i with r_i the posterior of i given the noisy x, and so for the
endpoints: exact at every t.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde.forward import ForwardSDE, Point
from sde.random import Generator, rand
from sde.score.classifier import Judge, checked_weights
from sde.score.guidance import no_coupling, same_sde
from sde.score.model import Model, Wrapper
from sde.shape import as_time, expand, scaled


class Composed(Wrapper):
    """What models of several parts share: parts of one SDE that have scores.

    Attributes:
        parts: The models, in order.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        rule, named = type(self).__name__, {f"models[{k}]": model for k, model in enumerate(models)}
        if not named:
            raise ValueError(f"{rule} needs models, got none: pass two or more")
        same_sde(named)
        no_coupling(rule, named)
        super().__init__(models[0])
        # One by one, not in a ModuleList: what looks for conditions goes from a model to the models in it.
        for k, model in enumerate(models[1:], 1):
            self.add_module(f"model{k}", model)
        self.n, self.tabulates = len(models), all(model.tabulates for model in models)

    @property
    def parts(self) -> list[Model]:  # noqa: D102
        return [self.model, *(self.get_submodule(f"model{k}") for k in range(1, self.n))]  # pyright: ignore[reportReturnType]

    def joined(self, x: Tensor, t: float | Tensor, weights: Sequence[float | Tensor], cond: dict[str, Any]) -> Point:
        """Point whose endpoints are the parts', weighted by numbers or (B,) that sum to 1."""
        points = [part(x, t, **cond) for part in self.parts]
        x0, eps = _weighted(weights, [p.x0 for p in points]), _weighted(weights, [p.eps for p in points])
        return Point(self.sde, x, t, x0, eps)


def _weighted(weights: Sequence[float | Tensor], values: Sequence[Tensor]) -> Tensor:
    terms = [scaled(expand(w, v), v) for w, v in zip(weights, values, strict=True)]
    return torch.stack(terms).sum(0)


class Product(Composed):
    """Product of experts: what all of them, or a weighted vote of them, find likely.

    Args:
        models: The experts, of one SDE.
        weights: Power of each. Default: 1 with a base; 1 / n without, their geometric mean.
        base: What the experts have in common: the unconditional model where they are conditional ones; a wide Gaussian
            where they have nothing in common.

    Raises:
        ValueError: If SDEs differ, a model was trained with a coupling, or weights do not fit.

    References:
        Liu et al. (2022), 2206.01714, eq. 11; Du et al. (2023), 2302.11552, on what it samples and correctors.

    Example:
        >>> import torch, sde
        >>> vp = sde.VP()
        >>> left, right = (sde.ExactScore(sde.Gaussian([m], 1.0), vp) for m in (-1.0, 2.0))
        >>> between = sde.Product([left, right])  # the geometric mean, N(.5, 1)
        >>> torch.allclose(
        ...     between(torch.zeros(1, 1), 0.2).x0,
        ...     sde.ExactScore(sde.Gaussian([0.5], 1.0), vp)(torch.zeros(1, 1), 0.2).x0,
        ... )
        True
    """

    def __init__(
        self, models: Sequence[Model], weights: Sequence[float] | None = None, base: Model | None = None
    ) -> None:
        n = len(models)
        weights = n * [1.0 if base is not None else 1 / max(n, 1)] if weights is None else [float(w) for w in weights]
        total = math.fsum(weights)
        if len(weights) != n or not math.isfinite(total):
            raise ValueError(f"weights must be {n} finite numbers, one for each model, got {weights}")
        if n and base is None and not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(
                f"weights must sum to 1 without a base, got {total:g}, which would count the noise as often: pass what "
                "the models have in common as base, or a wide Gaussian, ExactScore(Gaussian(mean, cov), sde)"
            )
        super().__init__([*models, base] if n and base is not None else models)
        self.weights = tuple([*weights, 1 - total] if base is not None else weights)

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        return self.joined(x, t, self.weights, cond)

    @property
    def remedy(self) -> str:
        """What to change where a run explodes."""
        return f"weights nearer to 0 than {max(self.weights, key=abs):g}, or models with wider densities"

    def extra_repr(self) -> str:
        """Weights."""
        return f"weights={[round(w, 3) for w in self.weights]}"


class Blend(Composed):
    """Mixture of models: the density sum_i w_i p_i.

    Args:
        models: The components, of one SDE.
        weights: Probability of each, up to a factor. Default: equal.
        judge: From (x, t) to logits (B, n): which component a noisy state came from, such as a trained `Classifier`
            (its own idea of the weights then counts). Default: the exact densities, where all models state them.

    Raises:
        ValueError: If SDEs differ, a model was trained with a coupling, or weights do not fit.

    Warns:
        UserWarning: If neither densities nor a judge say what a state came from, so that the scores are averaged with
            constant weights. That is the geometric mean of the densities, not their mixture.

    Example:
        >>> import torch, sde
        >>> vp = sde.VP()
        >>> left, right = (sde.ExactScore(sde.Gaussian([m], 0.1), vp) for m in (-1.0, 1.0))
        >>> either = sde.Blend([left, right], weights=[0.2, 0.8])
        >>> x = sde.sample(either, (1000, 1), generator=torch.Generator().manual_seed(0))
        >>> round((x > 0).double().mean().item(), 1)
        0.8
    """

    def __init__(
        self, models: Sequence[Model], weights: Sequence[float] | Tensor | None = None, judge: Judge | None = None
    ) -> None:
        super().__init__(models)
        self.weights = tuple(checked_weights(weights, len(models)).tolist())
        self.judge, self.exact = judge, all(callable(getattr(m, "log_prob", None)) for m in models)
        if judge is None and not self.exact:
            warnings.warn(
                "Blend knows no densities of its models, so that it averages their scores with constant weights, which "
                "is their geometric mean and no mixture: pass judge=, a classifier of which model a state came from",
                stacklevel=2,
            )

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Exact log p_t(x), (B,), where every model states its own."""
        return torch.logsumexp(self._log_parts(x, t), 1)

    def _log_parts(self, x: Tensor, t: float | Tensor) -> Tensor:
        log_p: list[Tensor] = [part.log_prob(x, t) for part in self.parts]  # pyright: ignore[reportCallIssue]
        return torch.stack(log_p, 1) + x.new_tensor(self.weights).log()

    def shares(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Posterior probability of each component, given the state: (B, n)."""
        if self.judge is not None:
            return torch.softmax(self.judge(x, t if getattr(self.judge, "tabulates", False) else as_time(t)), 1)
        if self.exact:
            return torch.softmax(self._log_parts(x, t), 1)
        return x.new_tensor(self.weights).expand(len(x), -1)

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        return self.joined(x, t, self.shares(x, t).unbind(1), cond)

    def prior(self, x0_like: Tensor, generator: Generator = None, sde: ForwardSDE | None = None) -> Tensor:
        """Draw from the components' own priors, as often as their weights say."""
        draws = torch.stack([part.prior(x0_like, generator, sde or self.sde) for part in self.parts])
        u = rand((len(x0_like),), generator, dtype=torch.float32, device=draws.device)
        edges = torch.tensor(self.weights, dtype=torch.float32, device=draws.device).cumsum(0)
        which = torch.searchsorted(edges, u).clamp_max(self.n - 1)
        return draws[which, torch.arange(len(u), device=draws.device)]

    def prior_log_prob(self, x: Tensor, sde: ForwardSDE | None = None) -> Tensor:  # noqa: D102
        log_p = torch.stack([part.prior_log_prob(x, sde or self.sde) for part in self.parts], 1)
        return torch.logsumexp(log_p + x.new_tensor(self.weights).log(), 1)

    def data_mean(self) -> Tensor | None:  # noqa: D102
        pairs = zip(self.weights, [part.data_mean() for part in self.parts], strict=True)
        terms = [w * mean for w, mean in pairs if mean is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def data_scale(self) -> float:  # noqa: D102
        mean, square = self.data_mean(), 0.0
        for w, part in zip(self.weights, self.parts, strict=True):
            own = part.data_mean()
            apart = 0.0 if mean is None else float((mean - (0.0 if own is None else own)).square().mean())
            square += w * (part.data_scale() ** 2 + apart)
        return math.sqrt(square)

"""The exact posterior: what each method of this room is measured against."""

from __future__ import annotations

import torch

from sde.inverse.observation import Observation
from sde.score.empirical import Empirical, matching
from sde.score.mixture import Mixture
from sde.score.target import Target


def exact_posterior(target: Target, observation: Observation) -> Mixture | Empirical:
    r"""Distribution of x0 ~ target given an observation y = A(x0) + noise n, in closed form.

    A mixture's is a mixture (A linear), a data set's is the data with new weights (A any function): samples,
    log-density and, through `ExactScore(posterior, sde)`, the score at any t.

    Args:
        target: `Gaussian`, `Mixture` or `Empirical`.
        observation: One y, (1, \*E).

    Raises:
        TypeError: If target is of another kind.
        ValueError: If there is more than one y, the operator is for other samples, is not linear where it must be, or
            nothing in target can have made y.

    Example:
        >>> import torch, sde
        >>> prior = sde.Gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]])
        >>> first = sde.inverse.Mask(torch.tensor([True, False]))
        >>> seen = sde.inverse.Observation(first, torch.tensor([[2.0, 0.0]]), noise=1.0)
        >>> sde.inverse.exact_posterior(prior, seen).mean
        tensor([1.0000, 0.8000], dtype=torch.float64)
    """
    if len(observation.y) != 1:
        raise ValueError(
            f"exact_posterior needs one observation, got {len(observation.y)}: call it for each, "
            "Observation(operator, y[i : i + 1], noise)"
        )
    if observation.operator.event != target.event:
        raise ValueError(
            f"the operator was made for samples of shape {tuple(observation.operator.event)}, the target's have "
            f"{tuple(target.event)}: make the operator for event={tuple(target.event)}"
        )
    if isinstance(target, Empirical):
        with torch.no_grad():
            made = torch.cat([observation.operator(x) for x in target.data.split(target.chunk)])
        eps = max(torch.finfo(v.dtype).eps for v in (made, observation.y))
        return target.reweighted(matching(made, observation.y.to(made), observation.noise, eps**0.75))
    if not isinstance(target, Mixture):
        raise TypeError(f"target must be a Gaussian, Mixture or Empirical, got {type(target).__name__}")
    matrix = observation.check_linear("exact_posterior of a mixture").matrix()
    return target.posterior(matrix, observation.y, observation.noise)

r"""Couplings: which noise is paired with which datum.

Independent pairs give a score. Pairs matched by optimal transport inside each minibatch give straighter paths: the
network then learns a velocity that carries noise to data, but -eps / sigma is no longer the score of anything (law 11),
and the model is marked `coupled`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Coupling = Callable[[Tensor, Tensor], Tensor]
"""From data z and noise eps, (B, \\*D) each, to the noise reordered."""


def optimal_transport(z: Tensor, eps: Tensor) -> Tensor:
    r"""Noise reordered so that the sum of squared distances to the data is least: exact transport in the minibatch.

    Args:
        z: Data, (B, \*D).
        eps: Noise, (B, \*D).

    References:
        Tong et al. (2024), 2302.00482; Pooladian et al. (2023), 2304.14772.

    Example:
        >>> import torch, sde
        >>> z, eps = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [-2.0]])
        >>> sde.train.optimal_transport(z, eps).flatten()
        tensor([-2.,  2.])
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(z.flatten(1), eps.flatten(1)).square()
    _, order = linear_sum_assignment((cost.cpu().double() - _prices(cost).cpu().double()).numpy())
    return eps[torch.from_numpy(order).to(eps.device)]


def _prices(cost: Tensor, sweeps: int = 10, share: float = 0.05) -> Tensor:
    """A price for each column, nearly those of the best assignment, by Sinkhorn's sweeps at a little entropy.

    Prices leave the best assignment what it is. After good ones nearly every row finds its column at once, which halves
    the time of the search.
    """
    rest = cost - cost.min(1, keepdim=True).values
    scale = (share * rest.std(correction=0)).clamp_min(torch.finfo(cost.dtype).tiny)
    kernel, v = torch.exp(-rest / scale), torch.ones_like(cost[0])
    for _ in range(sweeps):
        v = 1 / (kernel.T @ (1 / (kernel @ v)).clamp_max(1e30)).clamp_min(1e-30)
    return scale * torch.log(v)

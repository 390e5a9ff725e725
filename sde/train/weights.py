r"""Weights that make the error of F that of another quantity, whatever the parameterisation.

With det = alpha q - sigma p the errors are proportional: of eps (alpha / det), of x0 (sigma / det), and so of the
velocity alpha' x0 + sigma' eps by (alpha sigma' - sigma alpha') / det. See `sde.train.loss`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde.score import Levels


def noise(at: Levels, scale: float) -> Tensor:
    """1 on the error of eps, sigma^2 on that of the score: finite for the implicit losses at all levels.

    References:
        Song & Ermon (2019), 1907.05600, section 4.2; Ho, Jain & Abbeel (2020), 2006.11239, eq. 14.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP(), "eps")
        >>> sde.train.noise(model.levels(torch.tensor([0.1, 0.9])), 1.0)  # an eps network's own error
        tensor([1., 1.], dtype=torch.float64)
    """
    return (at.alpha / _det(at)) ** 2


def velocity(at: Levels, scale: float) -> Tensor:
    """1 on the error of the velocity: flow matching's weight.

    References:
        Lipman et al. (2023), 2210.02747, eq. 23.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.Flow(), "velocity")
        >>> sde.train.velocity(model.levels(torch.tensor([0.1, 1.0])), 1.0)
        tensor([1., 1.], dtype=torch.float64)
    """
    return ((at.alpha * at.dsigma - at.sigma * at.dalpha) / _det(at)) ** 2


def karras(at: Levels, scale: float) -> Tensor:
    """(sigma^2 + s^2) / (sigma s)^2 on the error of x0, for sigma and x0 of the variance-exploding form: EDM's weight.

    An edm or v network has its own error under it; so has any other network by this weight.

    References:
        Karras et al. (2022), 2206.00364, table 1 and eq. 144.

    Example:
        >>> import torch, sde
        >>> model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.EDM(), "edm")
        >>> sde.train.karras(model.levels(torch.tensor([0.1, 10.0])), 1.0)
        tensor([1., 1.], dtype=torch.float64)
    """
    return (torch.hypot(at.alpha * scale, at.sigma) / (scale * _det(at))) ** 2


def _det(at: Levels) -> Tensor:
    """The determinant; infinite where it is 0, as the state then says nothing of what the weight is of."""
    det = at.alpha * at.q - at.sigma * at.p
    return det.masked_fill(torch.logical_not(det), math.inf)

"""What the tests of distillation share: exact consistency functions, and a teacher that is told a label."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sde

SDES: dict[str, sde.ScalarSDE] = {
    "EDM": sde.EDM(),
    "VE": sde.VE(),
    "VP": sde.VP(),
    "SubVP": sde.SubVP(),
    "Cosine": sde.Cosine(),
    "Flow": sde.Flow(),
    "OrnsteinUhlenbeck": sde.OrnsteinUhlenbeck(),
    "Tabulated": sde.Tabulated.linear(),
    "EDM from .5": sde.EDM(sigma_min=0.5),
    "VP from .2": sde.VP(t_min=0.2),
}
MEAN, STD = 0.7, 0.6


@pytest.fixture(params=SDES)
def scalar_sde(request: pytest.FixtureRequest) -> sde.ScalarSDE:
    """Each scalar SDE in turn."""
    return SDES[request.param]


@pytest.fixture
def gaussian() -> sde.Gaussian:
    """N(MEAN, STD^2)."""
    return sde.Gaussian([MEAN], STD**2)


def spread(forward: sde.ScalarSDE, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """alpha, and the standard deviation of x_t where data are N(MEAN, STD^2)."""
    t = torch.as_tensor(t, dtype=torch.float64)
    return forward.alpha(t), torch.hypot(forward.alpha(t) * STD, forward.sigma(t))


@pytest.fixture
def ends() -> Callable[..., Tensor]:
    """The function below."""
    return exact_end


def exact_end(forward: sde.ScalarSDE, x: Tensor, t: Tensor | float, s: Tensor | float | None = None) -> Tensor:
    """Where the flow of N(MEAN, STD^2) goes from x at t: it keeps the number of standard deviations."""
    (a, r), (b, q) = spread(forward, t), spread(forward, forward.t_min if s is None else s)
    return (b * MEAN + q / r * (x - a * MEAN)).to(x.dtype)


class Labelled(sde.Model):
    """The exact model of data N(2 label - 1, .04) in one dimension, which is told the label of each sample."""

    def __init__(self, forward: sde.ScalarSDE) -> None:
        super().__init__()
        self.sde = forward

    def forward(self, x: Tensor, t: float | Tensor, label: Tensor | None = None) -> sde.Point:
        alpha, sigma = (c.reshape(-1, 1).to(x.dtype) for c in self.sde.levels(torch.as_tensor(t).double()))
        assert label is not None
        mean = (2.0 * label - 1)[:, None].to(x)
        gain = alpha * 0.04 / (alpha**2 * 0.04 + sigma**2)
        return sde.Point(self.sde, x, t, mean + gain * (x - alpha * mean))


@pytest.fixture
def labelled() -> type[sde.Model]:
    """The class above."""
    return Labelled

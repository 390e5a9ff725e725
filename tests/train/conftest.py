"""Every forward SDE and every parameterisation, small networks, and training runs as one vector of bits."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.score.param import PARAMS, SCALAR_ONLY


class Linear(sde.ScalarSDE):
    """A student's SDE: two lines, rates by autograd."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - 0.9 * t

    def sigma(self, t: Tensor) -> Tensor:
        return 0.01 + t


SCALAR: dict[str, Callable[[], sde.ForwardSDE]] = {
    "VP": sde.VP,
    "SubVP": sde.SubVP,
    "VE": lambda: sde.VE(0.01, 10.0),
    "EDM": lambda: sde.EDM(0.01, 10.0),
    "Cosine": sde.Cosine,
    "Flow": sde.Flow,
    "OrnsteinUhlenbeck": lambda: sde.OrnsteinUhlenbeck(theta=0.7, s=1.3, t_max=3.0),
    "Tabulated": lambda: sde.Tabulated.linear(50, 1e-3, 0.2),
    "FromCoefficients": lambda: sde.FromCoefficients(f=lambda t: -t - 1, g=lambda t: 1 + t),
    "custom": Linear,
}
MATRIX: dict[str, Callable[[], sde.ForwardSDE]] = {
    "CLD": sde.CLD,
    "ThirdOrderLangevin": sde.ThirdOrderLangevin,
    "MatrixSDE": lambda: sde.MatrixSDE(
        F=[[-1, 2], [-2, -1]], G=[[1, 0], [0.5, 1]], embed=[1, 0.5], cov0=[[0.01, 0], [0, 0.04]]
    ),
}
EVERY = SCALAR | MATRIX


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`forward` is every SDE, `scalar` and `matrix` one kind, `param` every parameterisation that the SDE has."""
    names = metafunc.fixturenames
    if "param" in names:
        pairs = [(f, p) for f in EVERY for p in PARAMS if f in SCALAR or p not in SCALAR_ONLY]
        metafunc.parametrize(("forward", "param"), pairs, indirect=["forward"], ids=[f"{f}-{p}" for f, p in pairs])
    for name, these in {"forward": EVERY, "scalar": SCALAR, "matrix": MATRIX}.items():
        if name in names and not (name == "forward" and "param" in names):
            metafunc.parametrize(name, list(these), indirect=True)


@pytest.fixture
def forward(request: pytest.FixtureRequest) -> sde.ForwardSDE:
    """Every forward SDE in turn."""
    return EVERY[request.param]()


@pytest.fixture
def scalar(request: pytest.FixtureRequest) -> sde.ForwardSDE:
    """Every scalar one."""
    return EVERY[request.param]()


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> sde.ForwardSDE:
    """Every matrix one."""
    return EVERY[request.param]()


@pytest.fixture
def inside() -> Callable[[sde.ForwardSDE, int], Tensor]:
    """Times strictly inside an SDE's range, evenly spaced."""

    def times(forward: sde.ForwardSDE, n: int = 5) -> Tensor:
        u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return forward.t_min + u * (forward.t_max - forward.t_min)

    return times


@pytest.fixture
def small() -> Callable[..., sde.ScoreModel]:
    """A model that trains in a moment, the same at every call."""

    def make(forward: sde.ForwardSDE | None = None, seed: int = 0, dim: int = 2, **kwargs: object) -> sde.ScoreModel:
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        net = kwargs.pop("net", None) or sde.nets.MLP(dim=dim, width=16, depth=1, features=8)
        torch.set_rng_state(state)
        return sde.ScoreModel(net, forward or sde.VP(), **kwargs)  # type: ignore[arg-type]

    return make


@pytest.fixture
def bits() -> Callable[[nn.Module], Tensor]:
    """Everything that a module holds, as one vector."""
    return lambda module: torch.cat([v.detach().double().reshape(-1) for v in module.state_dict().values()])


@pytest.fixture
def points(seeded: Callable[[int], torch.Generator]) -> Tensor:
    """Two hundred points in the plane, mean 0 and variance 1."""
    return torch.randn(200, 2, generator=seeded(99)) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]]) / math.sqrt(1.0)

"""Optimal-transport coupling: exact in the minibatch, a velocity that is right, and no score (law 11)."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

import sde
from sde.train import optimal_transport

MEAN, STD = 1.0, 0.4


@pytest.mark.parametrize("shape", [(60, 1), (60, 3), (40, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_transport_of_pot(shape: tuple[int, ...], dtype: torch.dtype, seeded: Callable) -> None:
    z, eps = (torch.randn(shape, generator=seeded(i)).to(dtype) for i in (1, 2))
    paired = optimal_transport(z, eps)
    assert paired.shape == eps.shape
    assert paired.dtype == dtype
    n = len(z)
    plan = torch.cdist(paired.reshape(n, -1), eps.reshape(n, -1)).argmin(1)
    assert torch.equal(eps[plan], paired)  # a reordering ..
    assert torch.equal(plan.sort().values, torch.arange(n))  # .. of all of them
    cost = ot.dist(z.reshape(n, -1).double().numpy(), eps.reshape(n, -1).double().numpy())
    uniform = np.full(n, 1 / n)
    least = float((ot.emd(uniform, uniform, cost) * cost).sum())
    ours = float((z - paired).double().square().flatten(1).sum(1).mean())
    assert ours == pytest.approx(least, rel=1e-6)
    assert ours < 0.95 * float((z - eps).double().square().flatten(1).sum(1).mean())


def test_in_one_dimension_it_sorts(seeded: Callable) -> None:
    z, eps = (torch.randn(100, 1, generator=seeded(i)) for i in (1, 2))
    order = z.flatten().argsort()
    assert torch.equal(optimal_transport(z, eps).flatten()[order], eps.flatten().sort().values)


def carried(forward: sde.Flow, coupling: Callable | None) -> sde.ScoreModel:
    generator = torch.Generator().manual_seed(5)
    data = MEAN + STD * torch.randn(4000, 1, generator=generator)
    model = sde.ScoreModel(sde.nets.MLP(dim=1, width=32, depth=2), forward, "velocity", mean=MEAN, scale=STD)
    sde.fit(model, data, 500, batch=128, lr=5e-3, coupling=coupling, generator=generator, progress=False)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def coupled() -> sde.ScoreModel:
    """A flow from N(1, .4^2) to N(0, 1), coupled by optimal transport."""
    torch.manual_seed(0)
    return carried(sde.Flow(), optimal_transport)


def velocities(t: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where the marginals have their mass, and there the velocities of the transport map and of independent pairs.

    The map is x0 = m + s eps, so that x = (1 - t) m + ((1 - t) s + t) eps, and eps - x0 = (1 - s) eps - m.
    Of independent pairs E[eps - x0 | x] is linear in x with the slope (t - (1 - t) s^2) / (t^2 + (1 - t)^2 s^2).
    """
    eps = torch.linspace(-1.5, 1.5, 31)[:, None]
    x = (1 - t) * MEAN + ((1 - t) * STD + t) * eps
    slope = (t - (1 - t) * STD**2) / (t**2 + (1 - t) ** 2 * STD**2)
    return x, (1 - STD) * eps - MEAN, slope * (x - (1 - t) * MEAN) - MEAN


@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_velocity_is_that_of_the_transport_map(coupled: sde.ScoreModel, t: float) -> None:
    x, transport, independent = velocities(t)
    ours = coupled(x, t).velocity
    assert float((ours - transport).square().mean().sqrt()) < 0.08
    if t != 0.3:  # where the two are alike
        assert float((independent - transport).square().mean().sqrt()) > 0.15


def test_without_a_coupling_it_is_the_other_one() -> None:
    torch.manual_seed(0)
    model = carried(sde.Flow(), None)
    assert not model.coupled
    for t in (0.1, 0.5, 0.9):
        x, transport, independent = velocities(t)
        error, apart = (float((v - independent).square().mean().sqrt()) for v in (model(x, t).velocity, transport))
        assert error < min(0.15, apart / 2)


def test_its_flow_carries_noise_to_data(coupled: sde.ScoreModel, generator: torch.Generator) -> None:
    """Straight paths: one Euler step does it."""
    x = torch.randn(5000, 1, generator=generator)
    ends = sde.sample(coupled, x=x, times=[1.0, 1e-5], solver=sde.Euler(), eta=0.0, progress=False)
    assert float(ends.mean()) == pytest.approx(MEAN, abs=0.1)
    assert float(ends.std()) == pytest.approx(STD, abs=0.1)
    assert float(((ends - MEAN) / STD - x).abs().mean()) < 0.2  # the map itself


def test_it_is_marked_and_stays_marked(coupled: sde.ScoreModel, tmp_path: Path) -> None:
    assert coupled.coupled
    assert sde.load(sde.save(coupled, tmp_path / "coupled.safetensors")).coupled
    assert coupled.given().coupled
    assert coupled(torch.zeros(1, 1), 0.5).coupled


def test_a_score_is_refused(coupled: sde.ScoreModel) -> None:
    point = coupled(torch.zeros(3, 1), 0.5)
    assert bool(torch.isfinite(point.velocity).all())
    with pytest.raises(ValueError, match=r"score: .*coupling"):
        _ = point.score
    with pytest.raises(ValueError, match=r"tilted: .*coupling"):
        point.tilted(torch.zeros(3, 1))


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_noise_is_refused(coupled: sde.ScoreModel, eta: float) -> None:
    with pytest.raises(ValueError, match=f"eta={eta}.*coupling.*eta=0"):
        sde.ReverseSDE(coupled, eta)
    with pytest.raises(ValueError, match="coupling"):
        sde.sample(coupled, (2, 1), eta=eta, progress=False)


@pytest.mark.parametrize(
    "solver",
    [
        sde.Langevin(),
        sde.AnnealedLangevin(),
        sde.PredictorCorrector(sde.Euler(), sde.Langevin()),
        sde.PredictorCorrector(sde.DDIM(), sde.AnnealedLangevin()),
    ],
    ids=lambda s: type(s).__name__,
)
def test_correctors_are_refused(coupled: sde.ScoreModel, solver: sde.Solver) -> None:
    with pytest.raises(ValueError, match="coupling"):
        sde.sample(coupled, (2, 1), solver=solver, eta=0.0, progress=False)


def test_training_again_without_a_coupling_unmarks_it(small: Callable, points: Tensor) -> None:
    model = small(sde.Flow(), param="velocity")
    sde.fit(model, points, 1, coupling=optimal_transport, progress=False)
    assert model.coupled
    sde.fit(model, points, 1, progress=False)
    assert not model.coupled


def test_a_matrix_sde_has_no_coupled_velocity(matrix: sde.ForwardSDE, points: Tensor, small: Callable) -> None:
    with pytest.raises(ValueError, match=f"coupling needs a scalar SDE.*{type(matrix).__name__}.*coupling=None"):
        sde.fit(small(matrix), points, 1, coupling=optimal_transport, progress=False)


def test_each_batch_is_coupled(points: Tensor, small: Callable) -> None:
    """The coupling sees centred data and noise, and what it returns is what is trained on."""
    calls: list[tuple[Tensor, Tensor]] = []

    def nothing(z: Tensor, eps: Tensor) -> Tensor:
        calls.append((z, eps))
        return 0 * eps

    model = small(sde.Flow(), param="velocity", mean=5.0)
    losses = [float(s.loss) for s in sde.fit_steps(model, points + 5, 3, batch=50, coupling=nothing)]
    assert len(calls) == 3
    for z, eps in calls:
        assert z.shape == eps.shape == (50, 2)
        assert abs(float(z.mean())) < 1  # not 5
        assert float(eps.std()) == pytest.approx(1.0, abs=0.3)
    # Untrained, the network answers 0, the target is 0 - z, and the unit weight 1/2.
    assert losses[0] == pytest.approx(float(calls[0][0].square().mean()) / 2, rel=1e-5)
    assert math.isfinite(sum(losses))

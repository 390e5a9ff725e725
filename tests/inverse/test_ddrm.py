"""DDRM: the paper's own spelling with a dense SVD, pixels that are kept, laws and refusals."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sde
from sde import inverse

SDES = {"VP": sde.VP, "EDM": sde.EDM, "Flow": sde.Flow, "SubVP": sde.SubVP, "Cosine": sde.Cosine, "VE": sde.VE}
TARGET = sde.Mixture([0.4, 0.6], [[-1.0, 0.3, 0.5], [0.8, -0.2, 0.1]], [[0.3, 0.2, 0.4], [0.2, 0.3, 0.1]])
A = torch.tensor([[1.0, 0.5, -0.3], [0.2, -0.1, 0.4]], dtype=torch.float64)
Y = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
SEEN = torch.tensor([True, False, True])
PIXELS = torch.tensor([[0.7, 0.0, -0.4]], dtype=torch.float64)


def gens(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pixels(noise: float = 0.0, seen: Tensor = SEEN, y: Tensor = PIXELS) -> inverse.Observation:
    return inverse.Observation(inverse.Mask(seen), y * seen, noise)


def paper(model: sde.ExactScore, times: Tensor, x: Tensor, sigma_y: float, eta: float, eta_b: float, seed: int):
    """Algorithm of the paper in x / alpha and sigma / alpha, singular direction by singular direction.

    Where alpha = 0 the first state is alpha times infinity: it is entered in the units of x.
    """
    g, forward = gens(seed)[0], model.sde
    u, s, vt = torch.linalg.svd(A)
    s, y = s.tolist(), (Y @ u)[0]
    levels = [tuple(float(c) for c in forward.levels(t)) for t in times]
    bar, z = x @ vt.T, torch.randn(x.shape, generator=g).double() @ vt.T
    (alpha, sigma), first = levels[0], bar.clone()
    for i in range(2):
        first[:, i] = alpha * y[i] / s[i] + math.sqrt(sigma**2 - (alpha * sigma_y / s[i]) ** 2) * z[:, i]
    x = first @ vt
    for (t, (alpha_t, sigma_t)), (_, (alpha, sigma)) in pairwise(zip(times, levels, strict=True)):
        x0 = model(x, t).x0
        theta, noise = x0 @ vt.T, ((x - alpha_t * x0) / sigma_t) @ vt.T  # (x_{t+1} - x_theta) / sigma_{t+1}
        z, level = torch.randn(x.shape, generator=g).double() @ vt.T, sigma / alpha
        bar = torch.empty_like(theta)
        for i in range(3):
            if i == 2:
                bar[:, i] = theta[:, i] + math.sqrt(1 - eta**2) * level * noise[:, i] + eta * level * z[:, i]
            elif level < sigma_y / s[i]:
                pull = (y[i] / s[i] - theta[:, i]) / (sigma_y / s[i])
                bar[:, i] = theta[:, i] + math.sqrt(1 - eta**2) * level * pull + eta * level * z[:, i]
            else:
                spread = math.sqrt(level**2 - (sigma_y / s[i] * eta_b) ** 2)
                bar[:, i] = (1 - eta_b) * theta[:, i] + eta_b * y[i] / s[i] + spread * z[:, i]
        x = alpha * bar @ vt
    if sigma_y == 0:
        bar = x @ vt.T
        bar[:, :2] = y / torch.tensor(s)
        x = bar @ vt
    return x


@pytest.mark.parametrize("kind", SDES)
@pytest.mark.parametrize(("noise", "eta", "eta_b"), [(0.0, 0.85, 1.0), (0.3, 0.85, 1.0), (0.3, 0.4, 0.7), (0.1, 1, 0)])
def test_a_run_is_the_papers(kind: str, noise: float, eta: float, eta_b: float) -> None:
    forward = SDES[kind]()
    model, times = sde.ExactScore(TARGET, forward), sde.grids.data_scaled(forward, 9)
    x = model.prior(torch.zeros(6, 3).double(), gens(1)[0])
    ddrm = inverse.DDRM(inverse.Observation(inverse.Matrix(A), Y, noise), eta, eta_b)
    ours = sde.sample(model, solver=ddrm, times=times, x=x, generator=gens(2)[0])
    torch.testing.assert_close(ours, paper(model, times, x, noise, eta, eta_b, 2), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", SDES)
def test_observed_pixels_are_kept_to_the_bit(kind: str) -> None:
    x = sde.sample(sde.ExactScore(TARGET, SDES[kind]()), (5, 3), steps=6, solver=inverse.DDRM(pixels()))
    assert bool((x[:, SEEN] == PIXELS[:, SEEN]).all())
    assert len(x[:, 1].unique()) == 5


@pytest.mark.parametrize("kind", SDES)
def test_no_observation_is_ddim_with_a_variance_of_the_papers(kind: str) -> None:
    model, blind = sde.ExactScore(TARGET, SDES[kind]()), pixels(seen=torch.zeros(3, dtype=torch.bool))
    run = lambda solver: sde.sample(model, (4, 3), steps=7, solver=solver, generator=gens(3)[0])  # noqa: E731
    torch.testing.assert_close(run(inverse.DDRM(blind, eta=0.0)), run(sde.DDIM()), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(run(inverse.DDRM(blind)), run(sde.DDIM()))


@pytest.mark.parametrize("kind", SDES)
def test_samples_do_not_know_their_neighbours(kind: str) -> None:
    model = sde.ExactScore(TARGET, SDES[kind]())

    def run(y: Tensor, seeds: list[int]) -> Tensor:
        return sde.sample(
            model, (len(seeds), 3), steps=5, solver=inverse.DDRM(pixels(0.2, y=y)), generator=gens(*seeds)
        )

    y = torch.cat([PIXELS, PIXELS + 0.5, PIXELS - 0.3])
    torch.testing.assert_close(run(y, [1, 2, 3])[1:2], run(y[1:2], [2]), rtol=1e-9, atol=1e-9)


def test_eta_of_sample_is_the_papers() -> None:
    model = sde.ExactScore(TARGET, sde.VP())
    run = lambda made, eta: sde.sample(  # noqa: E731
        model, (4, 3), steps=7, solver=inverse.DDRM(pixels(0.3), made), eta=eta, generator=gens(0)[0]
    )
    assert torch.equal(run(0.85, 0.2), run(0.2, None))
    assert not torch.allclose(run(0.85, 0.2), run(0.85, None))


def test_what_does_not_fit_is_refused() -> None:
    run = lambda o, forward=sde.VP(), **kw: sde.sample(  # noqa: E731, B008
        sde.ExactScore(TARGET, forward), (2, 3), steps=4, solver=inverse.DDRM(o), **kw
    )
    with pytest.raises(ValueError, match="DDRM needs a scalar SDE, got CLD: use VP"):
        run(pixels(), sde.CLD())
    with pytest.raises(ValueError, match="3 observations for 2 samples"):
        run(pixels(y=PIXELS.repeat(3, 1)))
    with pytest.raises(ValueError, match="needs a linear operator"):
        run(inverse.Observation(inverse.Function(torch.sin, (3,)), PIXELS))
    with pytest.raises(ValueError, match=r"eta up to 1.*got eta=1\.5"):
        run(pixels(), eta=1.5)
    for bad in ({"eta": -0.1}, {"eta": 1.1}, {"eta_b": 2.0}, {"eta_b": math.nan}):
        with pytest.raises(ValueError, match=rf"{next(iter(bad))} must be in \[0, 1\]"):
            inverse.DDRM(pixels(), **bad)

"""Replacement: moments by hand, where it is exact, pixels that are kept, laws and refusals."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sde
from sde import inverse
from sde.checks import affine

SDES = {"VP": sde.VP, "EDM": sde.EDM, "Flow": sde.Flow, "SubVP": sde.SubVP, "CLD": sde.CLD}
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.6, 0.1], [0.6, 0.5, 0.0], [0.1, 0.0, 0.3]], dtype=torch.float64)
GAUSS = sde.Gaussian(MEAN, COV)
A = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.5, 0.4]], dtype=torch.float64)
Y = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
SEEN = torch.tensor([True, False, True])
PIXELS = torch.tensor([[0.7, 0.0, -0.4]], dtype=torch.float64)


def gens(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pixels(noise: float = 0.0, seen: Tensor = SEEN) -> inverse.Observation:
    return inverse.Observation(inverse.Mask(seen), PIXELS * seen, noise)


def numbers(noise: float = 0.0) -> inverse.Observation:
    return inverse.Observation(inverse.Matrix(A), Y, noise)


def reverse(forward: sde.ForwardSDE, eta: float = 1.0) -> sde.ReverseSDE:
    return sde.ReverseSDE(sde.ExactScore(GAUSS, forward), eta)


def prior(forward: sde.ScalarSDE) -> tuple[Tensor, Tensor]:
    alpha, sigma = (float(c) for c in forward.levels(forward.t_max))
    return alpha * MEAN, alpha**2 * COV + sigma**2 * torch.eye(3).double()


def by_hand(forward: sde.ScalarSDE, times: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance after ancestral steps with replacement, in the coordinates of a dense SVD."""
    u, s, vt = torch.linalg.svd(A)
    rotate, eye = vt, torch.eye(3).double()
    p = torch.cat([(u.T @ Y[0]) / s, torch.zeros(1).double()])
    spread = torch.cat([noise / s, torch.tensor([math.inf]).double()])

    def replaced(m: Tensor, c: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        known = alpha * spread <= sigma
        m, c = rotate @ m, rotate @ c @ rotate.T
        m = torch.where(known, alpha * p, m)
        c = torch.where(known[:, None] | known[None], 0.0, c)
        c = c + torch.diag(torch.where(known, sigma**2 - (alpha * spread) ** 2, 0.0).nan_to_num())
        return rotate.T @ m, rotate.T @ c @ rotate

    m, c = prior(forward)
    levels = [tuple(float(v) for v in forward.levels(t)) for t in times]
    m, c = replaced(m, c, *levels[0])
    for (alpha, sigma), (alpha_s, sigma_s) in pairwise(levels):
        gain = alpha * COV @ torch.linalg.inv(alpha**2 * COV + sigma**2 * eye)
        a = alpha / alpha_s
        k, v = a * sigma_s**2 / sigma**2, sigma_s**2 / sigma**2 * (sigma**2 - a**2 * sigma_s**2)
        # x_s = alpha_s x0 + k (x - alpha x0) + sqrt(v) z at x0 = MEAN + gain (x - alpha MEAN)
        step = (alpha_s - k * alpha) * gain + k * eye
        m = step @ m + (alpha_s - k * alpha) * (MEAN - alpha * gain @ MEAN)
        c = step @ c @ step.T + v * eye
        last = (1.0, 0.0) if noise == 0 and (alpha_s, sigma_s) == levels[-1] else (alpha_s, sigma_s)
        if noise == 0 or (alpha_s, sigma_s) != levels[-1]:
            m, c = replaced(m, c, *last)
    return m, c


@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["VP", "EDM", "Flow", "SubVP"])
def test_moments_of_a_run_are_those_by_hand(kind: str, noise: float) -> None:
    forward = SDES[kind]()
    times = sde.grids.data_scaled(forward, 12)
    run = affine(reverse(forward), (3,), times, inverse.Replacement(sde.Ancestral(), numbers(noise)))
    mean, cov = run.moments(*prior(forward))
    expected = by_hand(forward, times, noise)
    torch.testing.assert_close(mean, expected[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(cov, expected[1], rtol=1e-6, atol=1e-8)


def test_it_is_biased_where_parts_depend_on_each_other_and_exact_where_they_do_not() -> None:
    forward, observation = sde.EDM(), pixels()
    times = sde.grids.data_scaled(forward, 200)
    law = inverse.exact_posterior(GAUSS, observation)
    run = affine(reverse(forward), (3,), times, inverse.Replacement(sde.Heun(), observation))
    mean, _ = run.moments(*prior(forward))
    assert 0.05 < float((mean - law.mean).abs().max()) < 0.5
    torch.testing.assert_close(mean[[0, 2]], PIXELS[0, [0, 2]])
    apart = sde.Gaussian([0.5, -1.0, 0.2], [1.0, 0.5, 0.3])
    run = affine(
        sde.ReverseSDE(sde.ExactScore(apart, forward), 1.0), (3,), times, inverse.Replacement(sde.Heun(), observation)
    )
    mean, cov = run.moments(80.0 * torch.zeros(3).double(), 80.0**2 * torch.eye(3).double())
    law = inverse.exact_posterior(apart, observation)
    torch.testing.assert_close(mean, law.mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(cov, law.cov, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", ["VP", "EDM", "Flow"])
def test_denoising_is_exact(kind: str) -> None:
    """Where all is seen, the state at the level of the noise is y, and the reverse SDE draws from the posterior."""
    forward = SDES[kind]()
    everything = torch.ones(3, dtype=torch.bool)
    y = torch.tensor([[0.7, -0.2, -0.4]], dtype=torch.float64)
    observation = inverse.Observation(inverse.Mask(everything), y, noise=0.5)
    near = torch.tensor([2 * math.log(1 / 0.5)], dtype=torch.float64)  # a node at sigma / alpha = noise
    times = torch.cat([sde.grids.data_scaled(forward, 400), forward.time_at(near)]).unique().flip(0)
    run = affine(reverse(forward), (3,), times, inverse.Replacement(sde.Heun(), observation))
    mean, cov = run.moments(*prior(forward))
    law = inverse.exact_posterior(GAUSS, observation)
    torch.testing.assert_close(mean, law.mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(cov, law.cov, rtol=0, atol=5e-3)


@pytest.mark.parametrize("solver", [sde.Ancestral, sde.DDIM, sde.Heun, sde.EulerMaruyama, sde.RK4])
@pytest.mark.parametrize("kind", SDES)
@pytest.mark.parametrize("fixed", [False, True])
def test_observed_pixels_are_kept_to_the_bit(kind: str, solver: type[sde.Solver], fixed: bool) -> None:
    model = sde.ExactScore(GAUSS, SDES[kind]())
    x = sde.sample(model, (5, 3), steps=6, solver=inverse.Replacement(solver(), pixels(), fixed), generator=gens(0)[0])
    x = x[:, 0] if kind == "CLD" else x
    assert bool((x[:, SEEN] == PIXELS[:, SEEN]).all())
    assert len(x[:, 1].unique()) == 5


@pytest.mark.parametrize("kind", SDES)
def test_no_observation_is_the_solver_itself(kind: str) -> None:
    forward = SDES[kind]()
    blind = pixels(seen=torch.zeros(3, dtype=torch.bool))
    model = sde.ExactScore(GAUSS, forward)
    for solver in (sde.DDIM(), sde.Heun()):
        run = lambda s: sde.sample(model, (4, 3), steps=7, solver=s, generator=gens(3)[0])  # noqa: E731
        assert torch.equal(run(inverse.Replacement(solver, blind)), run(solver))
    times = sde.solvers.default_times(model, 7)
    shape = (2, 3) if kind == "CLD" else (3,)
    for solver in (sde.Ancestral(), sde.EulerMaruyama()):
        noisy, plain = (affine(reverse(forward), shape, times, s) for s in (inverse.Replacement(solver, blind), solver))
        torch.testing.assert_close(noisy.state, plain.state)
        torch.testing.assert_close(noisy.noise @ noisy.noise.T, plain.noise @ plain.noise.T)


def test_a_fixed_noise_makes_a_path_and_a_fresh_one_does_not() -> None:
    forward, observation = sde.VP(), pixels(noise=0.1)
    model = sde.ExactScore(GAUSS, forward)
    for fixed in (True, False):
        solver = inverse.Replacement(sde.DDIM(), observation, fixed)
        x = model.prior(torch.zeros(4, 3).double(), gens(0)[0])
        times = torch.linspace(1, 0.3, 8).double()
        states = list(sde.trajectory(reverse(forward, 0.0), x, times, solver, gens(1)[0]))[1:-1]
        z = []
        for state in states:
            alpha, sigma = (float(c) for c in forward.levels(state.t))
            z.append((state.x - alpha * PIXELS)[:, SEEN] / math.sqrt(sigma**2 - (0.1 * alpha) ** 2))
        assert torch.allclose(z[0], z[-1]) is fixed
        assert float(z[-1].std()) > 0.3


@pytest.mark.parametrize("kind", SDES)
def test_samples_do_not_know_their_neighbours(kind: str) -> None:
    model = sde.ExactScore(GAUSS, SDES[kind]())

    def run(y: Tensor, seeds: list[int]) -> Tensor:
        solver = inverse.Replacement(sde.Ancestral(), inverse.Observation(inverse.Mask(SEEN), y))
        return sde.sample(model, (len(seeds), 3), steps=5, solver=solver, generator=gens(*seeds))

    y = torch.cat([PIXELS, PIXELS + 0.5, PIXELS - 0.3]) * SEEN
    torch.testing.assert_close(run(y, [1, 2, 3])[1:2], run(y[1:2], [2]), rtol=1e-9, atol=1e-9)


def test_times_as_tensors_give_the_same() -> None:
    class ThroughTensors(sde.Wrapper):
        def forward(self, x, t, **cond):
            return self.model(x, t, **cond)

    model = sde.ExactScore(GAUSS, sde.Flow())
    runs = [
        sde.sample(m, (4, 3), steps=6, solver=inverse.Replacement(sde.Heun(), numbers(0.3)), generator=gens(0)[0])
        for m in (model, ThroughTensors(model))
    ]
    torch.testing.assert_close(*runs)


@pytest.mark.parametrize(
    ("solver", "why"),
    [
        (sde.Adams(), "Adams remembers"), (sde.UniPC(), "UniPC remembers"),
        (sde.DPMSolverPP(), "DPMSolverPP remembers"),
        (sde.SASolver(), "SASolver remembers"), (sde.DormandPrince(), "DormandPrince chooses"),
        (sde.PredictorCorrector(sde.Adams()), "Adams remembers"), (sde.MatrixAdams(), "MatrixAdams remembers"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("method", [inverse.Replacement, inverse.RePaint])
def test_solvers_that_remember_are_refused(method: type, solver: sde.Solver, why: str) -> None:
    with pytest.raises(ValueError, match=f"{why}.*one-step solver"):
        sde.sample(sde.ExactScore(GAUSS, sde.VP()), (2, 3), solver=method(solver, pixels()))


def test_one_step_rules_and_correctors_are_not() -> None:
    model = sde.ExactScore(GAUSS, sde.VP())
    for solver in (
        sde.DPMSolverPP(2, multistep=False), sde.SEEDS(), sde.Churn(), sde.PredictorCorrector(sde.DDIM()),
        sde.Milstein(), sde.SRA1(), sde.ReverseDiffusion(), inverse.Replacement(sde.DDIM(), pixels()),
    ):  # fmt: skip
        x = sde.sample(model, (2, 3), steps=8, solver=inverse.Replacement(solver, pixels()))
        assert bool((x[:, SEEN] == PIXELS[:, SEEN]).all())


def test_what_does_not_fit_is_refused() -> None:
    model, ancestral = sde.ExactScore(GAUSS, sde.VP()), sde.Ancestral()
    run = lambda o, m=model: sde.sample(m, (2, 3), steps=4, solver=inverse.Replacement(ancestral, o))  # noqa: E731
    with pytest.raises(ValueError, match=r"CLD and noise=0\.1: use VP"):
        run(pixels(0.1), sde.ExactScore(GAUSS, sde.CLD()))
    with pytest.raises(ValueError, match="3 observations for 2 samples"):
        run(inverse.Observation(inverse.Mask(SEEN), PIXELS.repeat(3, 1)))
    with pytest.raises(ValueError, match="was made for"):
        run(inverse.Observation(inverse.Mask(SEEN[:2]), PIXELS[:, :2]))
    with pytest.raises(ValueError, match="needs a linear operator"):
        run(inverse.Observation(inverse.Function(torch.sin, (3,)), PIXELS))
    up = torch.linspace(0.1, 1, 4).double()
    with pytest.raises(ValueError, match="down in time"):
        sde.trajectory(reverse(sde.VP(), 0.0), torch.zeros(2, 3), up, inverse.Replacement(sde.DDIM(), pixels()))


def test_the_first_state_is_joined_too() -> None:
    forward, model = sde.VP(), sde.ExactScore(GAUSS, sde.VP())
    x, times = torch.randn(4, 3, generator=gens(0)[0]).double(), torch.tensor([0.5, 0.3]).double()
    z = torch.randn(4, 3, generator=gens(1)[0]).double()
    alpha, sigma = (float(c) for c in forward.levels(0.5))
    joined = torch.where(SEEN, alpha * PIXELS + sigma * z, x)
    plain = sde.sample(model, x=joined, times=times, solver=sde.DDIM())
    ours = sde.sample(model, x=x, times=times, solver=inverse.Replacement(sde.DDIM(), pixels()), generator=gens(1)[0])
    torch.testing.assert_close(ours[:, ~SEEN], plain[:, ~SEEN])

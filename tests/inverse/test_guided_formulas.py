"""Each posterior method against its paper's formula, written with dense matrices, and against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sde
from sde import inverse
from sde.random import randn

D, M = 3, 2
TARGET = sde.Mixture(
    [0.4, 0.6],
    [[-1.0, 0.3, 0.5], [0.8, -0.2, 0.1]],
    [[[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.3]], [[0.3, -0.1, 0.1], [-0.1, 0.6, 0.0], [0.1, 0.0, 0.2]]],
)
GAUSS = sde.Gaussian([0.5, -1.0, 0.2], [[1.0, 0.6, 0.1], [0.6, 0.5, 0.0], [0.1, 0.0, 0.3]])
A = torch.tensor([[1.0, 0.5, -0.3], [0.2, -0.4, 0.9]], dtype=torch.float64)
FLAT = torch.tensor([[1.0, 0.5, -0.3], [2.0, 1.0, -0.6]], dtype=torch.float64)  # of rank 1
Y = torch.tensor([[0.7, -0.4], [0.1, 0.3], [1.5, 0.0], [-0.6, 0.9]], dtype=torch.float64)
R = 0.3


class Dense(inverse.LinearOperator):
    """A matrix, by its singular value decomposition."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__([matrix.shape[1]])
        self.a = matrix
        self.u, s, self.vt = torch.linalg.svd(matrix)
        self.s = torch.cat([s, s.new_zeros(max(matrix.shape) - len(s))])
        self.norm = float(s[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.check(x) @ self.a.T.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.a.to(y)

    def filter(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return (x @ self.vt.T.to(x) * f(self.s[: len(self.vt)].to(x))) @ self.vt.to(x)

    def filter_measured(self, y: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return (y @ self.u.to(y) * f(self.s[: len(self.u)].to(y))) @ self.u.T.to(y)


def made(noise: float = R, matrix: Tensor = A) -> inverse.Observation:
    return inverse.Observation(Dense(matrix), Y, noise)


def times(forward: sde.ForwardSDE) -> list[float]:
    low, high = forward.t_min, forward.t_max
    return [low + part * (high - low) for part in (0.02, 0.3, 0.95)]


def tau2(forward: sde.ForwardSDE, t: float) -> float:
    """Variance of the state's statistic, from the moments."""
    at = torch.tensor(t, dtype=torch.float64)
    if isinstance(forward, sde.ScalarSDE):
        alpha, sigma = forward.levels(at)
        return float((sigma / alpha) ** 2)
    assert isinstance(forward, sde.MatrixSDE)
    mean, cov = forward.moments(at)
    return float(1 / (mean @ torch.linalg.solve(cov, mean)))


def pull(forward: sde.ForwardSDE, x: Tensor, t: float) -> Tensor:
    """J' of x0(x): (B, N, d)."""
    model = sde.ExactScore(TARGET, forward)
    rows = [torch.autograd.functional.jacobian(lambda u: model(u[None], t).x0[0], one) for one in x]
    return torch.stack([row.flatten(1).T for row in rows])


def truth(target: sde.Mixture, forward: sde.ForwardSDE, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """States, x0 (B, d) and C = Cov[x0 | x] (B, d, d), by the mixture's formulas."""
    x = forward.perturb(target.sample(4, torch.Generator().manual_seed(0)), t, torch.Generator().manual_seed(1)).x
    x0 = sde.ExactScore(target, forward)(x, t).x0
    v, covs = tau2(forward, t), []
    y = forward.unmean(x, t)
    for one in y:  # law of x0 given one = x0 + sqrt(v) n
        weights, means, parts = [], [], []
        for w, m, c in zip(target.weights, target.means, target.covs, strict=True):
            total = c + v * torch.eye(D).double()
            weights.append(torch.log(w) + torch.distributions.MultivariateNormal(m, total).log_prob(one))
            means.append(m + c @ torch.linalg.solve(total, one - m))
            parts.append(c - c @ torch.linalg.solve(total, c))
        w, m = torch.softmax(torch.stack(weights), 0), torch.stack(means)
        r = m - w @ m
        covs.append(torch.einsum("k,kij->ij", w, torch.stack(parts)) + torch.einsum("k,ki,kj->ij", w, r, r))
    return x, x0, torch.stack(covs)


def column(m: Tensor, v: Tensor) -> Tensor:
    return (m @ v[..., None])[..., 0]


def pigdm(x0: Tensor, c: Tensor, v: float, a: Tensor) -> Tensor:
    scale2 = TARGET.scale**2
    matrix = scale2 * v / (scale2 + v) * a @ a.T + R**2 * torch.eye(M).double()
    return x0 + column(c @ a.T, torch.linalg.solve(matrix, (Y - x0 @ a.T).T).T)


def mmps(x0: Tensor, c: Tensor, v: float, a: Tensor) -> Tensor:
    matrix = a @ c @ a.T + R**2 * torch.eye(M).double()
    return x0 + column(c @ a.T, torch.linalg.solve(matrix, Y - x0 @ a.T))


def tmpd(x0: Tensor, c: Tensor, v: float, a: Tensor) -> Tensor:
    rows = (a @ c @ a.T).sum(2).clamp_min(0)
    return x0 + column(c @ a.T, (Y - x0 @ a.T) / (rows + R**2))


def dps(x0: Tensor, c: Tensor, v: float, a: Tensor) -> Tensor:
    return x0 + 0.7 * column(c @ a.T, Y - x0 @ a.T) / R**2


def annealed(x0: Tensor, c: Tensor, v: float, a: Tensor) -> Tensor:
    return x0 + 0.7 * column(c @ a.T, Y - x0 @ a.T) / (R**2 + v)


def diffpir(x0: Tensor, c: Tensor, v: float, a: Tensor) -> Tensor:
    matrix = a.T @ a / R**2 + 7 / v * torch.eye(D).double()
    return torch.linalg.solve(matrix, (Y @ a / R**2 + 7 / v * x0).T).T


def ddnm(x0: Tensor, c: Tensor, v: float, a: Tensor) -> Tensor:
    u, s, vt = torch.linalg.svd(a, full_matrices=False)
    part = torch.where(math.sqrt(v) >= R / s, 1.0, math.sqrt(v) * s / R)  # eq. 19 at eta = 0, on x0's own scale
    return x0 + ((Y - x0 @ a.T) @ u * torch.where(s > 1e-9, part / s, 0.0)) @ vt


METHODS: dict[str, tuple[Callable[..., sde.Model], Callable[..., Tensor]]] = {
    "PiGDM": (inverse.PiGDM, pigdm),
    "MMPS": (inverse.MMPS, mmps),
    "TMPD": (inverse.TMPD, tmpd),
    "DPS": (lambda model, o: inverse.DPS(model, o, weight=0.7), dps),
    "DPS, annealed": (lambda model, o: inverse.DPS(model, o, weight=0.7, annealed=True), annealed),
    "DiffPIR": (lambda model, o: inverse.DiffPIR(model, o, weight=7.0), diffpir),
    "DDNM": (inverse.DDNM, ddnm),
}


@pytest.mark.parametrize("matrix", [A, FLAT], ids=["full rank", "rank 1"])
@pytest.mark.parametrize("name", METHODS)
def test_formulas(name: str, matrix: Tensor, any_sde: sde.ForwardSDE) -> None:
    make, formula = METHODS[name]
    method = make(sde.ExactScore(TARGET, any_sde), made(matrix=matrix))
    for t in times(any_sde):
        x, x0, c = truth(TARGET, any_sde, t)
        expected = formula(x0, c, tau2(any_sde, t), matrix)
        size = float((expected - x0).abs().max())
        assert size > 1e-6
        torch.testing.assert_close(method(x, t).x0, expected, rtol=1e-6, atol=1e-6 * size)


def test_a_gaussian_is_exact_by_moment_matching(any_sde: sde.ForwardSDE) -> None:
    law = GAUSS.posterior(A, Y[0], R)
    method = inverse.MMPS(sde.ExactScore(GAUSS, any_sde), inverse.Observation(Dense(A), Y[:1], R))
    exact = sde.ExactScore(law, any_sde)
    for t in times(any_sde):
        x = any_sde.perturb(law.sample(5, torch.Generator().manual_seed(0)), t, torch.Generator().manual_seed(1)).x
        got, expected = method(x, t), exact(x, t)
        torch.testing.assert_close(got.x0, expected.x0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(got.score, expected.score, rtol=1e-6, atol=1e-6)


def test_a_gaussian_without_noise_is_exact_by_moment_matching() -> None:
    vp, law = sde.VP(), GAUSS.posterior(A, Y[0], 0.0)
    method = inverse.MMPS(sde.ExactScore(GAUSS, vp), inverse.Observation(Dense(A), Y[:1]))
    for t in times(vp):
        x = vp.perturb(law.sample(5), t).x
        torch.testing.assert_close(method(x, t).x0, sde.ExactScore(law, vp)(x, t).x0, rtol=1e-6, atol=1e-6)


def test_a_round_gaussian_is_exact_by_pseudo_inverse_and_by_rows(any_sde: sde.ForwardSDE) -> None:
    round_, half = sde.Gaussian([0.2, -0.1], 0.5), torch.tensor([True, False])
    y = torch.tensor([[0.9, 0.0]], dtype=torch.float64)
    observation = inverse.Observation(inverse.Mask(half), y, R)
    exact = sde.ExactScore(round_.posterior([[1.0, 0.0]], [0.9], R), any_sde)
    for t in times(any_sde):
        x = any_sde.perturb(round_.sample(5), t).x
        for kind in (inverse.PiGDM, inverse.TMPD):
            got = kind(sde.ExactScore(round_, any_sde), observation)(x, t)
            torch.testing.assert_close(got.x0, exact(x, t).x0, rtol=1e-7, atol=1e-7)


def test_where_the_state_says_nothing_x0_is_the_posteriors_mean() -> None:
    flow, law = sde.Flow(), GAUSS.posterior(A, Y[0], R)
    method = inverse.MMPS(sde.ExactScore(GAUSS, flow), inverse.Observation(Dense(A), Y[:1], R))
    got = method(torch.zeros(2, D).double(), 1.0)
    torch.testing.assert_close(got.x0, law.mean.expand(2, D), rtol=0.0, atol=0.02)
    assert float((GAUSS.mean - law.mean).abs().max()) > 0.2


def test_fewer_iterations_are_what_conjugate_gradients_make_of_them() -> None:
    vp = sde.VP()
    x, x0, c = truth(TARGET, vp, 0.3)
    matrix, r = A @ c @ A.T + R**2 * torch.eye(M).double(), Y - x0 @ A.T
    once = (r * r).sum(1, keepdim=True) / (r * column(matrix, r)).sum(1, keepdim=True) * r  # steepest descent from 0
    got = inverse.MMPS(sde.ExactScore(TARGET, vp), made(), iterations=1)(x, 0.3).x0
    torch.testing.assert_close(got, x0 + column(c @ A.T, once))


def test_dps_goes_through_any_operator() -> None:
    class Square(inverse.Operator):
        def forward(self, x: Tensor) -> Tensor:
            return (self.check(x) ** 2).sum(1, keepdim=True)

    vp, y = sde.VP(), torch.tensor([[1.2]], dtype=torch.float64)
    x, x0, c = truth(TARGET, vp, 0.3)
    observation = inverse.Observation(Square([D]), y, R)
    expected = x0 + column(c, 2 * x0 * (y - (x0**2).sum(1, keepdim=True)) / R**2)
    torch.testing.assert_close(inverse.DPS(sde.ExactScore(TARGET, vp), observation)(x, 0.3).x0, expected)
    stepped = sde.sample(sde.ExactScore(TARGET, vp), (4, D), steps=50, solver=inverse.DPSSolver(observation, 0.1))
    assert bool(stepped.isfinite().all())


def test_dps_steps_down_the_gradient_of_the_norm(any_sde: sde.ForwardSDE) -> None:
    t, s = times(any_sde)[1], times(any_sde)[0]
    x, x0, _ = truth(TARGET, any_sde, t)
    reverse = sde.ReverseSDE(sde.ExactScore(TARGET, any_sde), eta=1.0)
    r = Y - x0 @ A.T
    noise = lambda: sde.WhiteNoise(torch.Generator().manual_seed(3))  # noqa: E731
    plain = sde.Ancestral().step(reverse, x, t, s, noise())
    gradient = -column(pull(any_sde, x, t) @ A.T, r / r.norm(dim=1, keepdim=True)).reshape(x.shape)
    got = inverse.DPSSolver(made(), zeta=0.4).step(reverse, x, t, s, noise())
    torch.testing.assert_close(got, plain - 0.4 * gradient)


def test_mcg_puts_the_noised_observation_into_what_is_seen(any_sde: sde.ForwardSDE) -> None:
    t, s = times(any_sde)[1], times(any_sde)[0]
    x, *_ = truth(TARGET, any_sde, t)
    reverse = sde.ReverseSDE(sde.ExactScore(TARGET, any_sde), eta=1.0)
    noise = lambda: sde.WhiteNoise(torch.Generator().manual_seed(3))  # noqa: E731
    stepped = inverse.DPSSolver(made(), zeta=0.4).step(reverse, x, t, s, noise())
    both = noise()
    both.normal(x, t, s)  # the step's own
    known = any_sde.mixed(Y @ torch.linalg.pinv(A).T, s, both.fresh(x))
    seen = torch.linalg.pinv(A) @ A
    got = inverse.MCG(made(), zeta=0.4).step(reverse, x, t, s, noise())
    torch.testing.assert_close(got, stepped + (known - stepped) @ seen.T)


def test_a_row_of_negative_sum_counts_as_none() -> None:
    """Of [[.1, -.2], [-.2, 1]] the first."""
    edm, t = sde.EDM(), 2.0
    cov = torch.tensor([[0.1, -0.2], [-0.2, 1.0]], dtype=torch.float64)
    c = cov - cov @ torch.linalg.solve(cov + t**2 * torch.eye(2).double(), cov)
    model = sde.ExactScore(sde.Gaussian([0.0, 0.0], cov), edm)
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    rows = c.sum(1)
    assert float(rows[0]) < 0 < float(rows[1])
    observation = inverse.Observation(inverse.Mask(torch.tensor([True, True])), torch.ones(1, 2).double(), R)
    got, x0 = inverse.TMPD(model, observation)(x, t).x0, model(x, t).x0
    torch.testing.assert_close(got, x0 + ((1 - x0) / (rows.clamp_min(0) + R**2)) @ c)


@pytest.mark.parametrize("kind", [sde.VP, sde.EDM, sde.Flow])
def test_the_algorithm_of_pseudo_inverse_guidance(kind: type[sde.ScalarSDE]) -> None:
    forward = kind()
    t, s = times(forward)[1], times(forward)[0]
    x, x0, _ = truth(TARGET, forward, t)
    reverse, v, scale2 = sde.ReverseSDE(sde.ExactScore(TARGET, forward), eta=1.0), tau2(forward, t), TARGET.scale**2
    noise = lambda: sde.WhiteNoise(torch.Generator().manual_seed(3))  # noqa: E731
    plain = sde.Ancestral().step(reverse, x, t, s, noise())
    matrix = A @ A.T + R**2 * (scale2 + v) / (scale2 * v) * torch.eye(M).double()
    g = column(pull(forward, x, t) @ A.T, torch.linalg.solve(matrix, (Y - x0 @ A.T).T).T)
    got = inverse.PiGDMSolver(made()).step(reverse, x, t, s, noise())
    torch.testing.assert_close(got, plain + float(forward.levels(t)[0]) * g)


def test_diffpir_draws_a_part_of_the_noise_anew() -> None:
    vp, t, s = sde.VP(), 0.6, 0.4
    model, observation = sde.ExactScore(TARGET, vp), made()
    x, x0, c = truth(TARGET, vp, t)
    alpha, sigma = (float(v) for v in vp.levels(s))
    mean = alpha * diffpir(x0, c, tau2(vp, t), A)

    def step(zeta: float) -> Tensor:
        solver = inverse.DiffPIRSolver(observation, weight=7.0, zeta=zeta)
        generator = torch.Generator().manual_seed(0)
        return sde.integrate(sde.ReverseSDE(model), x, [t, s], solver, generator) - mean

    kept, anew = step(0.0), step(1.0)
    flow = sde.integrate(sde.ReverseSDE(inverse.DiffPIR(model, observation, weight=7.0)), x, [t, s], sde.DDIM())
    torch.testing.assert_close(kept + mean, flow)
    z = randn(x.shape, torch.Generator().manual_seed(0), dtype=x.dtype)
    torch.testing.assert_close(anew, sigma * z)
    torch.testing.assert_close(step(0.36), 0.8 * kept + 0.6 * anew)


def test_diffpir_refuses() -> None:
    with pytest.raises(ValueError, match=r"zeta must be in \[0, 1\], got 1.5"):
        inverse.DiffPIRSolver(made(), zeta=1.5)
    with pytest.raises(ValueError, match="weight must be positive and finite, got 0"):
        sde.sample(sde.ExactScore(TARGET, sde.VP()), (2, D), solver=inverse.DiffPIRSolver(made(), weight=0.0))
    solver, flow = inverse.DiffPIRSolver(made()), sde.ReverseSDE(sde.ExactScore(TARGET, sde.VP()))
    with pytest.raises(ValueError, match="goes down in time"):
        sde.integrate(flow, torch.zeros(len(Y), D).double(), [0.1, 0.5], solver)

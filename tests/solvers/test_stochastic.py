"""Milstein and stochastic Runge–Kutta: formulas by hand, orders along a path and in distribution, refusals."""

import functools
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

import sde
from sde.checks.convergence import fitted
from sde.random import Noise
from sde.solvers.stochastic.runge_kutta import SRA1, SRA3, Milstein

SDES = {"VP": sde.VP(), "EDM": sde.EDM(), "Flow": sde.Flow(), "VE": sde.VE(), "CLD": sde.CLD()}
RULES = {"SRA1": SRA1(), "SRA3": SRA3()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slope(errors):
    """Least-squares order of errors at steps n, 2n, 4n, ..."""
    y = torch.tensor(errors).double().log2()
    i = torch.arange(len(errors), dtype=torch.float64)
    return -float(((i - i.mean()) * y).sum() / (i - i.mean()).square().sum())


def drawn(x0, steps=1024, horizon=1.0):
    """A fine grid and a path on it, increments and areas."""
    path, fine = sde.BrownianPath(generator()), torch.linspace(0, horizon, steps + 1, dtype=torch.float64)
    for t, s in pairwise(fine.tolist()):
        path.area(x0, t, s)
    return path, fine


class Pairs(Noise):
    """Increments and areas that a test chooses: normals z and v, of which an area takes (z + v / sqrt 3) / 2."""

    def __init__(self, z, v):
        super().__init__(None)
        self.z, self.v = z, v

    def increment(self, x, t, s):
        return self.z * math.sqrt(abs(float(s) - float(t)))

    def fresh(self, x):
        return self.v


# Orders.


def keeps_its_orders(rule, forward, etas):
    fits = sde.checks.solver(rule, forward, etas)
    for name, fit in fits.items():
        declared = {"order": rule.order, "weak": rule.weak, "strong": rule.strong}[name.split()[0]]
        assert fit.value == pytest.approx(declared, abs=0.2), f"{name}: {fit}"
    assert len(fits) == 2 + 2 * len(etas)


@pytest.mark.parametrize("rule", RULES)
def test_orders(rule):
    """With eta = 1.5 the noise's own error, of order 1.5, is seen beside that of the drift, of order 2."""
    keeps_its_orders(RULES[rule], SDES["VP"], (1.5,))


@pytest.mark.parametrize("forward", ["EDM", "Flow"])
@pytest.mark.parametrize("rule", RULES)
def test_orders_in_distribution(rule, forward):
    found = [sde.checks.weak_order(RULES[rule], SDES[forward], eta).value for eta in (0.0, 1.0)]
    assert found == pytest.approx([RULES[rule].order, RULES[rule].weak], abs=0.2)


@pytest.mark.nightly
@pytest.mark.parametrize("forward", ["VP", "EDM", "Flow", "VE"])
@pytest.mark.parametrize("rule", RULES)
def test_orders_of_the_full_product(rule, forward):
    keeps_its_orders(RULES[rule], SDES[forward], (1.5, 2.0))


@pytest.mark.nightly
@pytest.mark.parametrize("rule", RULES)
def test_on_a_matrix_sde_the_noise_error_is_of_order_two(rule):
    """Noise enters the velocities, and the score's curvature meets it an integral later."""
    assert sde.checks.solver(RULES[rule], SDES["CLD"], (1.0,))["strong order at eta=1"].value > 1.8


@pytest.mark.parametrize("rule", RULES)
def test_strong_order_up_in_time(rule):
    well, x0 = sde.DoubleWell(h=0.1, s=2.0), torch.linspace(-1.5, 1.5, 400, dtype=torch.float64)[:, None]
    path, fine = drawn(x0)
    exact = sde.integrate(well, x0, fine, SRA3(), noise=path)
    ends = [sde.integrate(well, x0, fine[:: 1024 // n], RULES[rule], noise=path) for n in (32, 64, 128, 256)]
    assert slope([float((x - exact).norm()) for x in ends]) == pytest.approx(1.5, abs=0.2)


def expectation(process, solver, times, start, half_width, nodes=48):
    """E phi(x_T) of a scalar SDE, one step back at a time: Gauss–Hermite in both normals of a step, no samples."""
    z, w = (torch.tensor(c) for c in np.polynomial.hermite_e.hermegauss(6))
    k = torch.arange(nodes + 1, dtype=torch.float64)
    grid, weights = half_width * torch.cos(math.pi * k / nodes), (-1.0) ** k
    weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2

    def value(u, x):  # barycentric interpolation
        gap = x[:, None] - grid
        exact = gap.abs() < 1e-13
        c = weights / torch.where(exact, 1.0, gap)
        return torch.where(exact.any(1), u[exact.int().argmax(1)], (c @ u) / c.sum(1))

    u = torch.sin(grid) + 0.3 * torch.cos(1.5 * grid)
    pairs, joint = torch.cartesian_prod(z, z), torch.outer(w, w).flatten() / w.sum() ** 2
    x = grid.repeat_interleave(len(pairs))[:, None]
    noise = Pairs(*(column.repeat(len(grid))[:, None] for column in pairs.unbind(1)))
    for t, s in reversed(list(pairwise(times.tolist()))):
        y = solver.step(process, x, t, s, noise)[:, 0]
        u = (value(u, y.clamp(-half_width, half_width)).reshape(-1, len(pairs)) * joint).sum(1)
    return value(u, torch.tensor(start, dtype=torch.float64))


MIXED = sde.ExactScore(sde.Mixture([0.4, 0.6], [[-0.6], [0.6]], [0.2, 0.15]), SDES["VP"])
CURVED = {
    "double well": (sde.DoubleWell(), [-0.5, 0.3, 0.9], 3.0, lambda n: torch.linspace(0, 0.3, n + 1).double()),
    "mixture": (
        sde.ReverseSDE(MIXED, 1.0),
        [-0.8, 0.1, 1.0],
        6.0,
        lambda n: MIXED.sde.time_at(torch.linspace(-1.5, 1.5, n + 1).double()),
    ),
}


def expected(where, solver, steps):
    process, start, width, grid = CURVED[where]
    return expectation(process, solver, grid(steps), start, width)


finest = functools.cache(lambda where: expected(where, SRA3(), 256))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("where", CURVED)
def test_weak_order_where_the_drift_is_not_linear(rule, where):
    error = lambda n: float((expected(where, RULES[rule], n) - finest(where)).norm())  # noqa: E731
    fit = fitted(error, first=4, last=32, floor=2e-6)
    assert fit.value == pytest.approx(2.0, abs=0.2), fit


# Formulas.

TABLEAUS = {  # alpha, A0, B0, c0, beta1, beta2, c1 of Rößler (2010), tables 6.1 and 6.2
    "SRA1": ([1 / 3, 2 / 3], [[0, 0], [3 / 4, 0]], [[0, 0], [3 / 2, 0]], [0, 3 / 4], [1, 0], [-1, 1], [1, 0]),
    "SRA3": (
        [1 / 6, 1 / 6, 2 / 3],
        [[0, 0, 0], [1, 0, 0], [1 / 4, 1 / 4, 0]],
        [[0, 0, 0], [0, 0, 0], [1, 1 / 2, 0]],
        [0, 1, 1 / 2],
        [1, 0, 0],
        [-1, 1, 0],
        [1, 0, 0],
    ),
}


def by_tableau(name, process, x, t, s, w, area):
    """One step of the general scheme for additive noise, as the paper prints it."""
    alpha, a, b, c0, beta1, beta2, c1 = TABLEAUS[name]
    h, n = s - t, len(alpha)
    f, y = [], x
    for i in range(n):
        stage = x + sum(a[i][j] * h * f[j] for j in range(i))
        stage = stage + sum(b[i][j] / h * process.diffusion(x, t + c1[j] * h, area) for j in range(n))
        f.append(process.drift(stage, t + c0[i] * h))
    for i in range(n):
        y = y + alpha[i] * h * f[i] + process.diffusion(x, t + c1[i] * h, beta1[i] * w + beta2[i] / h * area)
    return y


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("where", ["up", "down"])
def test_a_step_is_the_papers(name, where, two_modes):
    process = sde.DoubleWell() if where == "up" else sde.ReverseSDE(sde.ExactScore(two_modes, sde.VP()), 0.8)
    t, s = (0.2, 0.5) if where == "up" else (0.5, 0.3)
    x, z, v = torch.randn(3, 8, 2, generator=generator(), dtype=torch.float64)
    w, area = Pairs(z, v).increment_and_area(x, t, s)
    ours = sde.integrate(process, x, [t, s], RULES[name], noise=Pairs(z, v))
    torch.testing.assert_close(ours, by_tableau(name, process, x, t, s, w, area), rtol=1e-12, atol=1e-12)


class Growing(sde.SDE):
    """No drift and noise that grows in proportion to time: the integral of (1 + 3 t) dW."""

    def drift(self, x, t):
        return torch.zeros_like(x)

    def diffusion(self, x, t, z):
        return (1 + 3 * float(t)) * z


@pytest.mark.parametrize("rule", RULES)
def test_noise_linear_in_time_is_exact(rule):
    """By parts it is 4 W(1) - 3 int W dt."""
    x0 = torch.zeros(50, 2, dtype=torch.float64)
    path, fine = drawn(x0, steps=8)
    exact = 4 * path.increment(x0, 0.0, 1.0) - 3 * path.area(x0, 0.0, 1.0)
    for grid in (fine[::8], fine[::2], fine):
        end = sde.integrate(Growing(), x0, grid, RULES[rule], noise=path)
        torch.testing.assert_close(end, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_models_that_take_no_nodes(rule, two_modes):
    """Times as tensors give what nodes give."""

    class Plain(sde.Wrapper):
        def forward(self, x, t, **cond):
            return self.model(x, t, **cond)

    model = sde.ExactScore(two_modes, sde.VP())
    x, times = torch.randn(4, 2, generator=generator(), dtype=torch.float64), [0.8, 0.5, 0.1]
    ends = [sde.integrate(sde.ReverseSDE(m, 1.0), x, times, RULES[rule], generator(3)) for m in (model, Plain(model))]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


# Milstein.


class Wave(sde.SDE):
    """Itô noise that depends on the state, elementwise, and on time: dx = -x dt + (1 + t) sin(a x + 1) dW."""

    additive = False

    def __init__(self, a=1.0, direction=+1):
        self.a, self.direction = a, direction

    def drift(self, x, t):
        return -x

    def diffusion(self, x, t, z):
        return (1 + float(t)) * torch.sin(self.a * x + 1) * z


@pytest.mark.parametrize(("t", "s"), [(0.2, 0.5), (0.5, 0.2)], ids=["up", "down"])
def test_milstein_by_hand(t, s, given_noise):
    x, z = torch.randn(2, 8, 3, generator=generator(), dtype=torch.float64)
    h, g, slope_of_g = s - t, (1 + t) * torch.sin(2 * x + 1), (1 + t) * 2 * torch.cos(2 * x + 1)
    w = z * math.sqrt(abs(h))
    expected = x - h * x + g * w + g * slope_of_g * (w**2 - abs(h)) / 2
    ours = sde.integrate(Wave(2.0, 1 if s > t else -1), x, [t, s], Milstein(), noise=given_noise(z))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_milstein_has_strong_order_one_where_euler_has_half():
    gbm, x0 = sde.GeometricBrownianMotion(mu=0.5, s=1.0), torch.ones(2000, 1, dtype=torch.float64)
    path, fine = drawn(x0, 128)
    exact = gbm.solution(x0, 1.0, path.increment(x0, 0.0, 1.0))

    def rms(solver, n):
        return float((sde.integrate(gbm, x0, fine[:: 128 // n], solver, noise=path) - exact).square().mean().sqrt())

    fits = [slope([rms(solver, n) for n in (8, 16, 32, 64, 128)]) for solver in (Milstein(), sde.Euler())]
    assert fits == pytest.approx([1.0, 0.5], abs=0.12)


def test_milstein_equals_torchsde_on_its_increments(given_noise):
    import torchsde

    process = Wave(0.7)

    class Theirs(torch.nn.Module):
        sde_type, noise_type = "ito", "diagonal"

        def f(self, t, x):
            return process.drift(x, t)

        def g(self, t, x):
            return process.diffusion(x, t, torch.ones_like(x))

    x0, times = torch.full((16, 3), 0.8, dtype=torch.float64), torch.linspace(0, 1, 33, dtype=torch.float64)
    motion = torchsde.BrownianInterval(0.0, 1.0, size=(16, 3), dtype=torch.float64, entropy=7)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        theirs = torchsde.sdeint(Theirs(), x0, times, bm=motion, method="milstein", dt=1 / 32).detach()
    steps = [motion(t, s) / (s - t).sqrt() for t, s in pairwise(times)]
    ours = sde.record(sde.trajectory(process, x0, times, Milstein(), noise=given_noise(*steps))).x
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("where", ["double well", "reverse", "flow"])
def test_milstein_on_additive_noise_is_euler_maruyama_to_the_bit(where, two_modes):
    eta = 1.0 if where == "reverse" else 0.0
    reverse = sde.ReverseSDE(sde.ExactScore(two_modes, sde.VP()), eta)
    process, times = (sde.DoubleWell(), [0.0, 0.4, 1.0]) if where == "double well" else (reverse, [1.0, 0.6, 0.1])
    x = torch.randn(4, 2, generator=generator())
    ends = [sde.integrate(process, x, times, solver, generator(1)) for solver in (Milstein(), sde.Euler())]
    assert torch.equal(*ends)


def test_milstein_does_not_see_the_batch():
    def run(n, noise):
        return sde.integrate(Wave(), torch.ones(n, 2), [0.0, 0.4, 1.0], Milstein(), noise)

    sde.checks.reproducible(run, "Milstein")


def test_milstein_in_any_grad_mode():
    x, times = torch.ones(4, 2), [0.0, 0.4, 1.0]
    run = lambda process, x: sde.integrate(process, x, times, Milstein(), generator())  # noqa: E731
    with torch.no_grad():
        plain = run(Wave(), x)
    with torch.inference_mode():
        assert torch.equal(run(Wave(), x), plain)
    assert not plain.requires_grad
    with torch.enable_grad():  # through state and parameter both
        u, a = x.double().requires_grad_(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda u, a: run(Wave(a), u), (u, a))


class Odd(sde.SDE):
    """Noise that is not diagonal, in three ways."""

    additive = False

    def __init__(self, way):
        self.way = way

    def drift(self, x, t):
        return -x

    def diffusion(self, x, t, z):
        if self.way == "one Brownian motion for all":
            return x * z[:, :1]
        if self.way == "rotated":
            return x * z.flip(1)
        if self.way == "mixed":
            return x * (z + 0.1 * z.roll(1, 1))
        return x.flip(1) * z if self.way == "depends on others" else x * z * (1 + 0.1 * x.sum(1, keepdim=True))


WAYS = ["one Brownian motion for all", "rotated", "mixed", "depends on others", "depends on all"]


@pytest.mark.parametrize("way", WAYS)
def test_milstein_refuses_noise_that_is_not_diagonal(way):
    x = torch.randn(3, 2, generator=generator())
    message = r"Milstein needs diagonal noise, .* depends on x_i and z_i alone, and that of Odd does not: use Euler"
    with pytest.raises(ValueError, match=message):
        sde.integrate(Odd(way), x, [0.0, 0.5, 1.0], Milstein(), generator())


def test_a_solver_checks_each_run():
    solver, x = Milstein(), torch.ones(2, 2)
    solver.step(Wave(), x, 0.0, 1.0, sde.WhiteNoise(generator()))
    with pytest.raises(ValueError, match="Milstein needs diagonal noise"):
        sde.integrate(Odd("mixed"), x, [0.0, 1.0], solver, generator())


def test_noise_that_only_says_that_it_depends_on_the_state():
    class Constant(sde.DoubleWell):
        additive = False

    x = torch.ones(3, 2, dtype=torch.float64)
    ends = [sde.integrate(p, x, [0.0, 0.5], Milstein(), generator()) for p in (Constant(), sde.DoubleWell())]
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("rule", RULES)
def test_rules_for_additive_noise_refuse_other_noise(rule):
    message = (
        rf"{rule} is made for noise that does not depend on the state, .* GeometricBrownianMotion does: use Milstein"
    )
    with pytest.raises(ValueError, match=message):
        sde.integrate(sde.GeometricBrownianMotion(), torch.ones(2, 1), [0.0, 1.0], RULES[rule])

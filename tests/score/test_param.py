"""Parameterisations: their papers' formulas, unit variances, and the same point from every one (law 6a)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sde
from sde.checks import LawViolation
from sde.score import param as table

ALL = tuple(table.PARAMS)


def test_law_6a_over_every_sde_in_float32(any_sde: sde.ForwardSDE) -> None:
    sde.checks.params(any_sde, dtype=torch.float32)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (-3.0, 2.0), (100.0, 0.125)])
def test_law_6a_for_any_data(mean: float, scale: float) -> None:
    for forward in (sde.VP(), sde.EDM(), sde.CLD()):
        sde.checks.params(forward, mean=mean, scale=scale)


@pytest.mark.parametrize("event", [(1,), (3, 4, 4)])
def test_law_6a_in_other_shapes(event: tuple[int, ...]) -> None:
    for forward in (sde.VP(), sde.CLD()):
        sde.checks.params(forward, event=event)


level = st.floats(1e-3, 1.0)


@given(alpha=level, sigma=level, s=st.floats(0.1, 10.0), dalpha=st.floats(-2, -0.1), dsigma=st.floats(0.1, 2.0))
def test_endpoints_solve_the_two_equations(alpha: float, sigma: float, s: float, dalpha: float, dsigma: float) -> None:
    """u = alpha z + sigma eps and F = p z + q eps, for every parameterisation, whatever the levels."""
    a, b, da, db, z, eps = (torch.tensor(c, dtype=torch.float64) for c in (alpha, sigma, dalpha, dsigma, 0.7, -1.3))
    for name, combination in table.PARAMS.items():
        p, q, _ = combination(a, b, da, db, s)
        u, f = a * z + b * eps, p * z + q * eps
        a0, b0, a1, b1 = table.endpoints(a, b, p, q)
        condition = float((q.abs() + p.abs()) * (a + b) / (a * q - b * p).abs() * max(s, 1 / s) ** 2)
        for got, expected in ((a0 * u + b0 * f, z), (a1 * u + b1 * f, eps)):
            assert float(abs(got - expected)) < 1e-13 * (1 + condition) * 10 / min(alpha, sigma), name


def test_where_the_state_says_nothing_of_the_data() -> None:
    """At alpha = 0 eps is u / sigma whatever the network says, and x0 is the mean."""
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for name in ("eps", "score"):
        p, q, _ = table.PARAMS[name](zero, 2 * one, -one, one, 1.0)
        assert [float(c) for c in table.endpoints(zero, 2 * one, p, q)] == [0.0, -0.0, 0.5, 0.0]
    for name in ("edm", "v", "x0", "velocity"):  # these still listen to the network
        p, q, _ = table.PARAMS[name](zero, one, -one, one, 1.0)
        assert float(table.endpoints(zero, one, p, q)[1]) != 0.0


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_edm_is_the_preconditioning_of_karras(sigma: float) -> None:
    """Table 1: D = c_skip x + c_out F(c_in x), with data of deviation s."""
    s, edm = 0.5, sde.EDM()
    raw, x = torch.tensor([[0.3, -0.7]]).double(), torch.tensor([[1.1, 0.4]]).double()
    shown = []

    class Net(nn.Module):
        def forward(self, u: Tensor, c: Tensor) -> Tensor:
            shown.extend([u, c])
            return raw

    point = sde.ScoreModel(Net(), edm, "edm", scale=s)(x, sigma)
    c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / math.sqrt(sigma**2 + s**2)
    torch.testing.assert_close(point.x0, c_skip * x + c_out * raw)
    torch.testing.assert_close(shown[0], x / math.sqrt(sigma**2 + s**2))
    torch.testing.assert_close(shown[1], torch.full((1,), math.log(sigma) / 4, dtype=torch.float64))


def test_v_is_that_of_salimans_and_ho() -> None:
    """v = alpha eps - sigma x for unit data under VP, and x = alpha z - sigma v."""
    vp, t = sde.VP(), 0.4
    alpha, sigma = (float(c) for c in vp.levels(t))
    raw, x = torch.tensor([[0.3, -0.7]]).double(), torch.tensor([[1.1, 0.4]]).double()
    point = sde.ScoreModel(Constant(raw), vp, "v")(x, t)
    torch.testing.assert_close(point.x0, alpha * x - sigma * raw)
    torch.testing.assert_close(alpha * point.eps - sigma * point.x0, raw)


def test_eps_is_that_of_ho() -> None:
    """x0 = (x - sqrt(1 - bar) eps) / sqrt(bar)."""
    ddpm, t = sde.Tabulated.linear(), 300.0
    bar = ddpm.alphas_cumprod[299]
    raw, x = torch.tensor([[0.3, -0.7]]).double(), torch.tensor([[1.1, 0.4]]).double()
    point = sde.ScoreModel(Constant(raw), ddpm, "eps")(x, t)
    torch.testing.assert_close(point.x0, (x - math.sqrt(1 - bar) * raw) / math.sqrt(bar))
    torch.testing.assert_close(point.eps, raw)


def test_velocity_is_that_of_flow_matching() -> None:
    raw, x = torch.tensor([[0.3, -0.7]]), torch.tensor([[1.1, 0.4]])
    net = Constant(raw)
    point = sde.ScoreModel(net, sde.Flow(), "velocity")(x, 0.25)
    torch.testing.assert_close(point.velocity, raw)  # the network is the velocity
    torch.testing.assert_close(point.x0, x - 0.25 * raw)
    assert torch.equal(net.shown, x)  # and sees the state as it is


def test_score_is_that_of_song_and_ermon() -> None:
    raw, x = torch.tensor([[0.3, -0.7]]), torch.tensor([[1.1, 0.4]])
    torch.testing.assert_close(sde.ScoreModel(Constant(raw), sde.VE(), "score")(x, 0.5).score, raw)


class Constant(nn.Module):
    """A network with one answer."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = self.shown = raw

    def forward(self, u: Tensor, c: Tensor) -> Tensor:
        self.shown = u
        return self.raw


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("s", [1.0, 0.3])
def test_networks_see_and_answer_with_unit_variance(name: str, s: float) -> None:
    """Data of deviation s: input and target of a network are of unit variance, by design of c_in, p and q."""
    for forward in (sde.VP(), sde.EDM(), sde.Flow()):
        t = torch.linspace(0.01, 1, 7, dtype=torch.float64) * forward.t_max
        levels = sde.ScoreModel(Constant(torch.zeros(1)), forward, name, scale=s).levels(t)
        input_variance = levels.c_in**2 * (levels.alpha**2 * s**2 + levels.sigma**2)
        target_variance = levels.p**2 * s**2 + levels.q**2
        if name == "velocity":  # alone keeps the size that flow matching gives it at s = 1
            torch.testing.assert_close(input_variance, levels.alpha**2 + levels.sigma**2)
            torch.testing.assert_close(target_variance, levels.dalpha**2 + levels.dsigma**2)
        else:
            torch.testing.assert_close(input_variance, torch.ones_like(t))
            expected = 1 / levels.sigma**2 if name == "score" else torch.ones_like(t)
            torch.testing.assert_close(target_variance, expected)


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_formula_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """p, q or c_in off by a hundredth, or of the wrong sign: law 6a knows the papers' formulas, not the table's."""
    right = table.PARAMS[name]
    for k, factor in ((0, 1.01), (1, 1.01), (0, -1.0), (2, 1.01)):

        def wrong(*args: object, k: int = k, factor: float = factor) -> tuple[Tensor, ...]:
            made = list(right(*args))  # type: ignore[arg-type]
            made[k] = made[k] * factor
            return tuple(made)

        if float(right(*(torch.tensor(c).double() for c in (0.8, 0.6, -1.0, 1.0)), 0.5)[k]) == 0:  # type: ignore[arg-type]
            continue
        monkeypatch.setitem(table.PARAMS, name, wrong)
        with pytest.raises(LawViolation, match=r"law 6a is broken by VP.*" + name):
            sde.checks.params(sde.VP(), [name])


def test_velocities_and_scores_of_matrix_states_are_refused() -> None:
    for name in table.SCALAR_ONLY:
        with pytest.raises(ValueError, match=f"param '{name}' is not defined for the matrix SDE CLD: use edm, v, eps"):
            sde.ScoreModel(Constant(torch.zeros(1)), sde.CLD(), name)

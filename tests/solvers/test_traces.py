"""Divergences against dense Jacobians, closed forms against backward passes, and what log_prob makes of them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde.solvers import ExactTrace, Hutchinson, HutchPP, divergence, hutchpp
from sde.solvers.likelihood.traces import normals, signs

MIXTURE = sde.Mixture([0.3, 0.7], [[-1.0, 0.5, 0.0], [1.0, 0.0, 0.3]], [[0.3, 0.05, 0.2], [0.1, 0.4, 0.02]])
TARGETS = {
    "mixture": MIXTURE,
    "correlated": sde.Gaussian([0.5, -1.0, 0.2], [[1.0, 0.6, 0.1], [0.6, 0.5, 0.0], [0.1, 0.0, 0.3]]),
    "data": sde.Empirical(torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)),
}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(dim: int = 2, classes: int = 0) -> sde.ScoreModel:
    torch.manual_seed(0)
    net = sde.nets.MLP(dim=dim, width=16, depth=1, classes=classes)
    torch.nn.init.normal_(net.outward.weight, std=0.3)
    return sde.ScoreModel(net, sde.VP(), mean=torch.linspace(-0.2, 0.3, dim).tolist(), scale=0.8).double().eval()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("forward", [sde.VP(), sde.EDM(), sde.Flow(), sde.SubVP()], ids=lambda s: type(s).__name__)
def test_closed_traces_are_those_of_backward_passes(target: str, forward: sde.ForwardSDE) -> None:
    model = sde.ExactScore(TARGETS[target], forward)
    for t in (0.05 * forward.t_max, 0.3 * forward.t_max, 0.95 * forward.t_max):
        x = forward.perturb(TARGETS[target].sample(6, gen()).double(), t, gen(1)).x
        found = model.traced(x, t)
        assert found is not None
        point, trace0, trace1 = found
        torch.testing.assert_close(point.x0, model(x, t).x0)
        for own, end in ((trace0, "x0"), (trace1, "eps")):
            slow = divergence(lambda u, t=t, end=end: getattr(model(u, t), end), x)[1]
            torch.testing.assert_close(own, slow, rtol=1e-8, atol=1e-9)
        each = model.traced(x, torch.full((6,), t, dtype=torch.float64))
        assert each is not None
        torch.testing.assert_close(each[1], trace0)
        torch.testing.assert_close(each[2], trace1)


def test_unknown_traces_are_said_to_be() -> None:
    assert trained().traced(torch.zeros(1, 2).double(), 0.5) is None
    assert sde.ExactScore(MIXTURE, sde.CLD()).traced(torch.zeros(1, 2, 3), 0.5) is None


@pytest.mark.parametrize("d", [3, 12])
def test_the_exact_trace(d: int) -> None:
    """One by one for few coordinates, in batches for more."""
    w = torch.randn(d, d, generator=gen(), dtype=torch.float64)
    x = torch.randn(4, d, generator=gen(1), dtype=torch.float64)
    v, div = ExactTrace().draw(x)(lambda u: torch.sin(u @ w), x)
    torch.testing.assert_close(v, torch.sin(x @ w))
    torch.testing.assert_close(div[:, 0], (torch.cos(x @ w) * w.diagonal()).sum(1))


def linear(w: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda u: (u.flatten(1) @ w).reshape(u.shape)


def test_normal_probes_have_the_variance_of_their_formula() -> None:
    w, n = torch.randn(5, 5, generator=gen(), dtype=torch.float64), 40_000
    x = torch.zeros(n, 5, dtype=torch.float64)
    many = Hutchinson(1, normal=True).draw(x, gen(2))(linear(w), x)[1][:, 0]
    j = (w + w.T) / 2
    variance = float(2 * j.square().sum())
    assert abs(float(many.mean() - w.trace())) < 4 * math.sqrt(variance / n)
    assert float(many.var()) == pytest.approx(variance, rel=0.05)


def test_hutchpp_is_exact_for_low_rank_and_unbiased_beyond() -> None:
    u, v = torch.randn(2, 8, 3, generator=gen(), dtype=torch.float64)
    x = torch.zeros(7, 2, 2, 2, dtype=torch.float64)
    low = HutchPP(probes=2, sketch=3).draw(x, gen(1))(linear(u @ v.T), x)[1]
    torch.testing.assert_close(low, (u @ v.T).trace().expand(7, 2))
    w = torch.randn(8, 8, generator=gen(3), dtype=torch.float64)
    w += 3 * torch.outer(w[0], w[1])  # what a sketch is for
    x = torch.zeros(20_000, 8, dtype=torch.float64)
    plus = HutchPP(probes=1, sketch=2).draw(x, gen(4))(linear(w), x)[1][:, 0]
    plain = Hutchinson(1).draw(x, gen(4))(linear(w), x)[1][:, 0]
    assert abs(float(plus.mean() - w.trace())) < 4 * float(plus.std()) / math.sqrt(len(x))
    assert plus.std() < 0.6 * plain.std()
    full = HutchPP(probes=1, sketch=99).draw(x[:5], gen(5))(linear(w), x[:5])[1]
    torch.testing.assert_close(full[:, 0], w.trace().expand(5))


def test_hutchpp_by_hand() -> None:
    w = torch.randn(4, 4, generator=gen(), dtype=torch.float64)
    x = torch.zeros(1, 4, dtype=torch.float64)
    z, s = normals(x.shape, 2, gen(1), x), signs(x.shape, 2, gen(2), x)
    q = torch.linalg.qr((s[:, 0] @ w.T).T)[0]  # J = w', as the field is u w: J' S = w S
    rest = torch.eye(4) - q @ q.T
    expected = [(q.T @ w.T @ q).trace() + p @ rest @ w.T @ rest @ p for p in z[:, 0]]
    torch.testing.assert_close(hutchpp(linear(w), x, z, s)[1][0], torch.stack(expected))


# What log_prob makes of them


def test_ways_agree() -> None:
    """Closed form, backward passes, and estimates within their errors."""
    target = sde.Gaussian(torch.zeros(6), torch.eye(6) * 0.3 + 0.2)
    model = sde.ExactScore(target, sde.EDM())
    x = target.sample(64, gen()).double()
    exact = model.log_prob(x, model.sde.t_min)
    closed = sde.log_likelihood(model, x)
    slow = sde.log_likelihood(model, x, trace=ExactTrace())
    torch.testing.assert_close(closed.value, exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(slow.value, closed.value, rtol=0, atol=1e-8)
    assert not closed.estimated
    assert closed.error.abs().max() == 0
    for trace in (Hutchinson(8), Hutchinson(8, normal=True), HutchPP(probes=8, sketch=1)):
        found = sde.log_likelihood(model, x, trace=trace, generator=gen(1))
        assert found.values.shape == (64, 8)
        assert found.estimated
        off, told = found.value - exact, float(found.error.square().mean())
        assert abs(float(off.mean())) < 4 * math.sqrt(told / 64) + 1e-5
        assert float(off.square().mean()) == pytest.approx(told, rel=0.5, abs=1e-9)


def test_the_default_is_exact_in_few_dimensions_and_estimated_in_many() -> None:
    few, many = trained(4), trained(300)
    assert not sde.log_likelihood(few, torch.zeros(2, 4).double(), [1e-3, 0.5, 1.0]).estimated
    found = sde.log_likelihood(many, torch.zeros(2, 300).double(), [1e-3, 0.5, 1.0])
    assert found.estimated
    assert found.values.shape == (2, 4)
    assert bool((found.error > 0).all())


@pytest.mark.parametrize("name", ["VP", "EDM", "Flow"])
def test_a_tolerance_is_met_and_told(name: str) -> None:
    target = sde.Mixture([0.4, 0.6], [[0.6, 0.5], [-0.6, 0.2]], [[0.3, 1e-3], [0.01, 0.05]])
    model = sde.ExactScore(target, getattr(sde, name)())
    x = target.sample(100, gen()).double()
    exact = model.log_prob(x, model.sde.t_min)
    for tol in (1e-3, 1e-6):
        found = sde.log_likelihood(model, x, tol=tol)
        assert found.ode_error is not None
        off = (found.value - exact).abs()
        assert float(found.ode_error.max()) <= tol
        assert float(off.max()) <= tol
        assert float((off <= found.ode_error + 1e-9).double().mean()) >= 0.9
    alone = torch.cat([sde.log_prob(model, x[i : i + 1], tol=1e-6) for i in range(3)])
    torch.testing.assert_close(alone, sde.log_prob(model, x[:3], tol=1e-6), rtol=0, atol=1e-10)


def test_what_a_tolerance_cannot_do_is_refused() -> None:
    model, x = sde.ExactScore(MIXTURE, sde.VP()), torch.zeros(1, 3)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tol": 0.0}, "tol must be positive, got 0.0"),
        ({"tol": 1e-4, "times": [1e-3, 1.0]}, "tol chooses the steps, and times give them"),
        ({"tol": 1e-4, "solver": sde.DormandPrince()}, "DormandPrince chooses its own: pass its rtol"),
        ({"tol": 1e-12}, r"tol=1e-12 nats is not met in 2304 steps: .*x in float64"),
    ]
    for how, words in cases:
        with pytest.raises(ValueError, match=words):
            sde.log_prob(model, x, **how)


def test_a_prior_with_a_covariance() -> None:
    """The model's Gaussian of one scale is off by the covariance at t_max; theirs is right."""
    cov = [[1.0, 0.9], [0.9, 1.0]]
    target, vp = sde.Gaussian([1.0, 0.0], cov), sde.VP(beta_max=8.0)  # a schedule that leaves some signal

    class Unknowing(sde.Wrapper):
        """The exact score, and the prior of a trained model."""

        def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> sde.Point:
            return self.model(x, t)

        def prior_log_prob(self, x: Tensor, sde: Any = None) -> Tensor:
            return vp.prior_log_prob(x, torch.tensor([1.0, 0.0]), 1.0)

    model = Unknowing(sde.ExactScore(target, vp))
    x = target.sample(50, gen()).double()
    exact = sde.ExactScore(target, vp).log_prob(x, vp.t_min)
    torch.testing.assert_close(sde.log_prob(model, x, prior=target), exact, rtol=0, atol=1e-5)
    assert float((sde.log_prob(model, x) - exact).abs().mean()) > 1e-3


def test_data_on_another_scale() -> None:
    """Log p of y = (x - b) / c is log p of x, and d log c."""
    target = sde.Mixture([0.5, 0.5], [[-40.0, 10.0], [35.0, 30.0]], [[90.0, 20.0], [30.0, 60.0]])
    model = sde.ExactScore(target, sde.EDM(sigma_min=0.05, sigma_max=4000.0))
    x, b, c = target.sample(20, gen()).double(), torch.tensor([3.0, -2.0]), 25.0
    small = sde.Mixture([0.5, 0.5], (target.means - b) / c, target.covs / c**2)
    found = sde.log_prob(model, x) + 2 * math.log(c)
    torch.testing.assert_close(found, small.log_prob((x - b) / c), rtol=0, atol=2e-3)


@pytest.fixture
def gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize("forward", [sde.VP(), sde.Flow(t_min=0.01), sde.CLD()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", ["exact", "trained", "estimated"])
def test_gradients(kind: str, forward: sde.ForwardSDE) -> None:
    """By x, against finite differences in float64."""
    model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [[0.2, 0.4], [0.3, 0.1]]), forward)
    if kind != "exact":
        net = trained().net
        model = sde.ScoreModel(net, forward, scale=0.8).double()
    trace = Hutchinson(2) if kind == "estimated" else None
    x = model.sde.state(torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=torch.float64))
    x = x + 0.1 * torch.randn(x.shape, generator=gen(1), dtype=torch.float64)
    times = sde.solvers.likelihood.log_prob.times_up(model, 6)
    run = lambda u: sde.log_prob(model, u, times, trace=trace, generator=gen(2), differentiable=True)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x.requires_grad_(),), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize("chunk", [1, 2])
def test_gradients_of_a_divergence(chunk: int) -> None:
    """By x, against finite differences in float64: of a score."""
    model = sde.ExactScore(MIXTURE, sde.VP())
    x = torch.randn(3, 3, generator=gen(1), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: divergence(lambda v: model(v, 0.3).score, u, chunk), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_divergence_in_half_precision(dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 6).reshape(3, 2).to(dtype)
    value, found = divergence(lambda u: u**3, x)
    assert value.dtype == found.dtype == dtype
    wanted = 3 * x.double().square().sum(1)
    torch.testing.assert_close(found.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=0)
    turned = x.T.contiguous().T
    assert torch.equal(divergence(lambda u: u**3, turned)[1], found)


@pytest.mark.usefixtures("gradients")
def test_gradients_of_weights() -> None:
    model, x = trained(), torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=torch.float64)
    net = model.net
    assert isinstance(net, sde.nets.MLP)
    weight = net.outward.weight
    times = sde.solvers.likelihood.log_prob.times_up(model, 6)
    sde.log_prob(model, x, times, differentiable=True).sum().backward()
    assert weight.grad is not None
    step, slope = 1e-6, float(weight.grad[0, 3])
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[0, 3] += sign * step
            values.append(float(sde.log_prob(model, x, times).sum()))
            weight[0, 3] -= sign * step
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


@pytest.mark.usefixtures("gradients")
def test_the_score_is_the_gradient_of_log_prob() -> None:
    """What a differentiable likelihood is good for: at t_min its slope is the score."""
    model = sde.ExactScore(MIXTURE, sde.VP())
    x = MIXTURE.sample(5, gen()).double().requires_grad_()
    (slope,) = torch.autograd.grad(sde.log_prob(model, x, differentiable=True).sum(), x)
    score = model(x.detach(), model.sde.t_min).score
    torch.testing.assert_close(slope, score, rtol=1e-3, atol=1e-3)


def test_what_is_not_contiguous_or_of_few_digits() -> None:
    model = sde.ExactScore(MIXTURE, sde.VP())
    x = MIXTURE.sample(4, gen()).double()
    turned = x.T.contiguous().T
    assert not turned.is_contiguous()
    assert torch.equal(sde.log_prob(model, turned), sde.log_prob(model, x))
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=f"x must be float32 or float64, got {dtype}: use x.float"):
            sde.log_prob(model, x.to(dtype))
    single = sde.log_prob(model, x.float())
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), sde.log_prob(model, x), rtol=0, atol=1e-4)


def test_bad_traces_are_refused() -> None:
    for make in (lambda: Hutchinson(0), lambda: HutchPP(probes=0), lambda: HutchPP(sketch=-1)):
        with pytest.raises(ValueError, match=r"must be a whole number of at least 1, got"):
            make()

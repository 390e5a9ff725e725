"""The variational bound: equal where the model is exact, below the reverse SDE's likelihood, above a wrong flow's."""

import math

import pytest
import torch

import sde
from sde.solvers import elbo, log_prob

SDES = {
    "VP": sde.VP(),
    "SubVP": sde.SubVP(),
    "VE": sde.VE(),
    "EDM": sde.EDM(),
    "Cosine": sde.Cosine(),
    "Flow": sde.Flow(),
    "OrnsteinUhlenbeck": sde.OrnsteinUhlenbeck(),
    "Tabulated": sde.Tabulated.cosine(100),
    "FromCoefficients": sde.FromCoefficients(f=lambda t: -t, g=lambda t: 1 + t, t_max=2.0),
}
TARGET = sde.Mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.05, 0.2])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Wrong(sde.Wrapper):
    """A model whose score is 1 + delta times another's."""

    def __init__(self, model, delta):
        super().__init__(model)
        self.delta = delta

    def forward(self, x, t, **cond):
        eps = (1 + self.delta) * self.model(x, t).eps
        return sde.Point(self.sde, x, t, self.sde.unmean(x - self.sde.color(eps, t), t), eps)


class Laws:
    """Variances at t_min under EDM (f = 0, g^2 dt = d(t^2)) of data N(0, v I) and a score 1 + delta times theirs.

    With V = v + t^2 the reverse SDE has dP/dV = 2 (1 + delta) P / V - 1 and the flow dP/dV = (1 + delta) P / V.
    """

    def __init__(self, v, delta, forward):
        self.first, self.last, self.delta = v + forward.t_min**2, v + forward.t_max**2, delta
        ratio, power = self.first / self.last, 1 + delta
        rest = self.last - self.last / (1 + 2 * delta)
        self.reverse = self.first / (1 + 2 * delta) + rest * ratio ** (2 * power)
        self.flow = self.last * ratio**power

    def bound(self, x):
        """log N(x; V_first) - 1/2 int (|s + n|^2 - |r + n|^2) dV with s = (1 + delta) r, E r n = -1 / V."""
        d, (a, b), delta = x.shape[1], (self.first, self.last), self.delta
        moved = (2 + delta) * (x.square().sum(1) - d * a) * (1 / a - 1 / b) + d * delta * math.log(b / a)
        return normal(x, a) - delta / 2 * moved


def normal(x, variance):
    return (-x.square() / (2 * variance) - math.log(2 * math.pi * variance) / 2).sum(1)


def z_score(found, wanted):
    """Of the mean over samples, by its own Monte-Carlo error."""
    return (found.mean - float(wanted.mean())) / found.mean_error


@pytest.mark.parametrize("name", SDES)
def test_it_is_the_likelihood_where_the_model_is_exact(name):
    model, x = sde.ExactScore(TARGET, SDES[name]), TARGET.sample(300, generator())
    found = elbo(model, x, cells=16, generator=generator(1))
    exact = model.log_prob(x, model.sde.t_min)
    assert found.mean_error < 0.03
    assert abs(z_score(found, exact)) < 4
    spread = ((found.value - exact) / found.error).clamp(-4, 4)  # of each sample: Student's, with three degrees
    assert 0.8 < float(spread.square().mean().sqrt()) < 2.2


@pytest.mark.parametrize("name", ["VP", "EDM", "Flow"])
def test_a_gaussian_needs_no_draw(name):
    model = sde.ExactScore(sde.Gaussian([1.0, -2.0, 0.5], 0.3), SDES[name])
    x = model.target.sample(20, generator())
    found = elbo(model, x, generator=generator(1))
    torch.testing.assert_close(found.value, model.log_prob(x, model.sde.t_min), rtol=0, atol=1e-5)
    assert float(found.error.max()) < 1e-5


@pytest.mark.parametrize("delta", [-0.05, 0.05, 0.3])
def test_it_is_the_closed_form_for_a_wrong_score_and_below_the_reverse_sde(delta):
    v, forward = 0.5, sde.EDM(0.01, 20.0)
    exact = sde.ExactScore(sde.Gaussian([0.0, 0.0], v), forward)
    x = exact.target.sample(2000, generator()) + 0.01 * torch.randn(2000, 2, generator=generator(3)).double()
    laws, found = Laws(v, delta, forward), elbo(Wrong(exact, delta), x, cells=8, repeats=2, generator=generator(1))
    assert abs(z_score(found, laws.bound(x))) < 4
    assert found.mean_error < 0.02 * abs(delta) / 0.05
    assert bool((laws.bound(x) <= normal(x, laws.reverse)).all())  # for every single x
    assert found.mean < float(normal(x, laws.reverse).mean()) + 4 * found.mean_error
    assert found.mean < -float(2 * math.log(2 * math.pi * math.e * laws.first) / 2) + 5 / math.sqrt(len(x))


def test_the_closed_form_of_the_reverse_sde_is_what_it_samples():
    """So that the law above, which the bound is compared with, is no mistake of the test."""
    v, delta, forward = 0.5, 0.3, sde.EDM(0.01, 20.0)
    model = Wrong(sde.ExactScore(sde.Gaussian([0.0], v), forward), delta)
    noise = model.prior(torch.empty(40_000, 1).double(), generator(5))
    times = sde.grids.data_scaled(forward, 200, v**0.5)[:-1]
    times = torch.cat([times[times > forward.t_min], torch.tensor([forward.t_min], dtype=torch.float64)])
    x = sde.integrate(sde.ReverseSDE(model, eta=1), noise, times, sde.EulerMaruyama(), generator(6))
    wanted = Laws(v, delta, forward).reverse
    assert float(x.var()) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("delta", [-0.05, 0.05])
def test_it_does_not_bound_the_likelihood_of_the_flow(delta):
    """A Gaussian with a score 5 % wrong: log p(flow) < ELBO <= log p(reverse SDE) <= -entropy."""
    v, forward = 0.5, sde.EDM(0.01, 20.0)
    exact = sde.ExactScore(sde.Gaussian([0.0, 0.0], v), forward)
    model, laws = Wrong(exact, delta), Laws(v, delta, forward)
    x = math.sqrt(laws.first) * torch.randn(4000, 2, generator=generator()).double()
    flow = log_prob(model, x[:50], trace=sde.ExactTrace())
    torch.testing.assert_close(flow, normal(x[:50], laws.flow), rtol=0, atol=2e-3)
    found = elbo(model, x, cells=8, repeats=2, generator=generator(1))
    gap = found.mean - float(normal(x, laws.flow).mean())
    assert gap > 8 * found.mean_error
    assert float(normal(x, laws.reverse).mean()) > found.mean - 4 * found.mean_error


def test_mean_likelihoods_stay_below_minus_the_entropy():
    """Of data by a closed form, of both bounds by draws of the data: cross-entropy is at least entropy."""
    forward = sde.VP()
    exact = sde.ExactScore(TARGET, forward)
    x = forward.perturb(TARGET.sample(400, generator()), forward.t_min, generator(1)).x
    truth = exact.log_prob(x, forward.t_min)
    for delta in (-0.1, 0.1):
        model = Wrong(exact, delta)
        flow = log_prob(model, x, trace=sde.ExactTrace()) - truth
        assert float(flow.mean()) < -2 * float(flow.std()) / 20
        found = elbo(model, x, cells=16, generator=generator(2))
        gap = found.value - truth
        assert float(gap.mean()) < -2 * float(gap.std()) / 20


def test_any_cells_are_unbiased():
    model, x = sde.ExactScore(TARGET, sde.VP()), TARGET.sample(300, generator())
    exact = model.log_prob(x, model.sde.t_min)
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    laws = (sde.train.LogNormal(), sde.train.Uniform(), sde.train.LikelihoodTimes())
    grids = [law.quantile(model.sde, u, TARGET.scale) for law in laws]
    errors = []
    for grid in grids:
        found = elbo(model, x, grid, repeats=8, generator=generator(2))
        assert abs(z_score(found, exact)) < 4
        errors.append(found.mean_error)
    assert errors[2] < errors[1] / 2  # importance against uniform times
    assert elbo(model, x[:1], cells=1, repeats=1).error.isnan().all()


def test_contributions_add_up_and_the_prior_is_counted():
    model = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-3.0], [3.0]], [0.1, 0.1]), sde.OrnsteinUhlenbeck(t_max=0.1))
    x = model.target.sample(8000, generator())
    found = elbo(model, x, cells=8, generator=generator(1))
    assert found.times.tolist()[0] == pytest.approx(model.sde.t_min)
    assert float(found.times[-1]) == pytest.approx(0.1)
    total = found.base.mean() + found.prior.mean() + found.by_time.sum()
    assert float(total) == pytest.approx(found.mean)
    assert float(found.prior.mean()) > 0.5  # data are not yet Gaussian at t_max
    assert abs(z_score(found, model.log_prob(x, model.sde.t_min))) < 4
    assert found.by_time_error.shape == (8,)
    assert found.evaluations == 64


def test_a_prior_of_ones_own():
    target = sde.Gaussian([1.0, 0.0], [[0.5, 0.3], [0.3, 0.4]])
    exact = sde.ExactScore(target, sde.VP())
    model = sde.ScoreModel(sde.nets.MLP(2, width=8), sde.VP()).double()
    x = target.sample(10, generator())
    own, given = (elbo(model, x, prior=p, generator=generator(1)) for p in (None, target))
    assert float(own.prior.abs().max()) < 1e-9
    wanted = exact.prior_log_prob(torch.zeros(1, 2).double()) - model.prior_log_prob(torch.zeros(1, 2).double())
    assert float((given.prior - wanted).abs().max()) > 1e-9
    torch.testing.assert_close(own.parts, given.parts)


def test_generators_of_each_sample_make_the_batch_irrelevant():
    model, x = sde.ExactScore(TARGET, sde.VP()), TARGET.sample(4, generator())
    whole = elbo(model, x, generator=[generator(i) for i in range(4)])
    part = elbo(model, x[2:], generator=[generator(i) for i in (2, 3)])
    torch.testing.assert_close(whole.values[2:], part.values)


def test_views_and_single_precision_are_right_and_half_is_refused():
    target = sde.Gaussian(torch.zeros(3, 2), torch.linspace(0.2, 0.6, 6))
    model, x = sde.ExactScore(target, sde.VP()), target.sample(4, generator())
    across = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not across.is_contiguous()
    same = elbo(model, x, generator=generator(1)).values
    torch.testing.assert_close(elbo(model, across, generator=generator(1)).values, same)
    single = elbo(model, x.float(), generator=generator(1)).values
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), same, rtol=0, atol=2e-3)
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        with pytest.raises(TypeError, match="x must be float32 or float64"):
            elbo(model, x.to(dtype))


def test_gradients():
    model = sde.ExactScore(TARGET, sde.VP())
    x = TARGET.sample(3, generator()).requires_grad_()
    bound = lambda y: elbo(model, y, cells=4, repeats=1, generator=generator(1), differentiable=True).value  # noqa: E731
    assert torch.autograd.gradcheck(bound, x)
    net = sde.ScoreModel(sde.nets.MLP(2, width=8), sde.VP())
    with torch.enable_grad():
        elbo(net, torch.ones(3, 2), cells=2, differentiable=True, generator=generator()).value.mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not elbo(net, torch.ones(3, 2), cells=2).value.requires_grad


def test_what_it_cannot_do_is_refused_by_name():
    model, x = sde.ExactScore(TARGET, sde.VP()), torch.zeros(2, 2)
    with pytest.raises(TypeError, match="elbo needs a scalar SDE, got the matrix SDE CLD"):
        elbo(sde.ExactScore(TARGET, sde.CLD()), torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="trained with a coupling"):
        elbo(sde.ScoreModel(sde.nets.MLP(2, width=8), sde.VP(), coupled=True), x)
    with pytest.raises(ValueError, match="x must be"):
        elbo(model, x[:0])
    with pytest.raises(ValueError, match="cells must be a whole number of at least 1, got 0"):
        elbo(model, x, cells=0)
    with pytest.raises(ValueError, match="times must run up"):
        elbo(model, x, [1.0, 0.5])
    with pytest.raises(ValueError, match=r"times begin at 0\.5"):
        elbo(model, x, [0.5, 1.0])
    with pytest.raises(ValueError, match="has no noise"):
        elbo(sde.ExactScore(TARGET, sde.Flow(t_min=0.0)), x)

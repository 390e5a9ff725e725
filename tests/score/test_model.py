"""Score models: laws of points and priors, conditioning, dtypes, and what is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.checks import LawViolation
from sde.nodes import Table
from sde.score.model import Given
from sde.score.param import PARAMS, SCALAR_ONLY


class Wavy(nn.Module):
    """A network that is smooth, bounded and not zero."""

    def forward(self, x: Tensor, c: Tensor, shift: Tensor | None = None) -> Tensor:
        out = torch.sin(x + c.reshape(-1, *[1] * (x.ndim - 1)))
        return out if shift is None else out + shift


def model_of(forward: sde.ForwardSDE, param: str = "edm", **keys: object) -> sde.ScoreModel:
    return sde.ScoreModel(Wavy(), forward, param, **keys)  # type: ignore[arg-type]


def test_laws_of_a_model(any_sde: sde.ForwardSDE) -> None:
    net = sde.nets.MLP(dim=2, width=8)
    with torch.no_grad():
        net.outward.weight.normal_()
    assert sde.checks.model(sde.ScoreModel(net, any_sde, mean=0.5, scale=2.0))


@pytest.mark.parametrize("param", PARAMS)
def test_laws_of_every_param(param: str) -> None:
    for forward in (sde.SubVP(), sde.EDM(), sde.CLD()):
        if isinstance(forward, sde.ScalarSDE) or param not in SCALAR_ONLY:
            sde.checks.model(model_of(forward, param, mean=0.5, scale=2.0))


@pytest.mark.nightly
@pytest.mark.parametrize("param", PARAMS)
def test_laws_of_every_param_on_every_sde(any_sde: sde.ForwardSDE, param: str) -> None:
    if isinstance(any_sde, sde.ScalarSDE) or param not in SCALAR_ONLY:
        sde.checks.model(model_of(any_sde, param, mean=0.5, scale=2.0), event=(2, 3))


def test_a_mean_for_each_channel() -> None:
    mean = torch.tensor([0.1, -0.2, 0.3])[:, None, None]
    model = model_of(sde.VP(), mean=mean, scale=0.5)
    x, t = torch.randn(4, 3, 2, 2), torch.linspace(0.1, 0.9, 4)
    alpha, sigma = model.sde.levels(t)  # type: ignore[attr-defined]
    a, b = (c.float()[:, None, None, None] for c in (alpha, sigma))
    point = model(x, t)
    torch.testing.assert_close(a * point.x0 + b * point.eps, x)
    blank = sde.ScoreModel(
        sde.nets.MLP(dim=12, width=8), sde.VP(), mean=mean, scale=0.5
    )  # predicts no more than edm does
    alpha1, sigma1 = (float(c) for c in sde.VP().levels(0.5))
    skip = 0.25 * alpha1 / (0.25 * alpha1**2 + sigma1**2)
    torch.testing.assert_close(blank(x, 0.5).x0, mean + skip * (x - alpha1 * mean))


def test_an_untrained_edm_model_is_exact_on_gaussian_data_of_its_moments(any_sde: sde.ForwardSDE) -> None:
    """With F = 0, edm predicts the posterior mean of N(mean, scale^2): the network has only the rest to learn."""
    net = sde.nets.MLP(dim=2, width=8).double()
    model = sde.ScoreModel(net, any_sde, mean=0.5, scale=2.0).double()
    exact = sde.ExactScore(sde.Gaussian([0.5, 0.5], 4.0 * torch.ones(2)), any_sde)
    for t in (any_sde.t_min, 0.4 * any_sde.t_max, any_sde.t_max):
        x = exact.sde.perturb(exact.target.sample(4), t, torch.Generator().manual_seed(0)).x
        torch.testing.assert_close(model(x, t).x0, exact(x, t).x0, rtol=1e-7, atol=1e-7)
    x = model.prior(torch.zeros(5, 2, dtype=torch.float64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.prior_log_prob(x), exact.prior_log_prob(x), rtol=1e-6, atol=1e-6)


def test_nodes_and_tensors_give_the_same_point_in_float32() -> None:
    model = model_of(sde.VP(), mean=0.3, scale=0.5)
    table, x = Table(torch.tensor([1.0, 0.5, 1e-3])), torch.randn(4, 2)
    for node in table.nodes:
        one, other = model(x, node), model(x, torch.full((4,), float(node), dtype=torch.float64))
        for name in ("x0", "eps", "velocity", "score"):
            assert getattr(one, name).dtype == getattr(other, name).dtype == torch.float32
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_a_move_is_that_of_the_point(param: str, mean: float) -> None:
    model, x = model_of(sde.VP(), param, mean=mean, scale=1.5), torch.randn(4, 2, dtype=torch.float64)
    nodes = Table(torch.tensor([0.9, 0.4, 0.1])).nodes
    given = model.given(shift=torch.full((4, 2), 0.3, dtype=torch.float64))
    for t in (nodes[1], torch.tensor(0.4, dtype=torch.float64), torch.linspace(0.1, 0.9, 4)):
        for each in (model, given):
            point = each(x, t)
            torch.testing.assert_close(each.move(x, t, 2.0, 3.0, -4.0), 2 * x + 3 * point.x0 - 4 * point.eps)
    torch.testing.assert_close(model.move(x, nodes[0], 0.0, 1.0, 0.0, shift=x), model(x, nodes[0], shift=x).x0)


def test_hooks_of_a_model_see_every_evaluation() -> None:
    model, seen = model_of(sde.VP()), []
    reverse, grid = sde.ReverseSDE(model), torch.linspace(1, 0.1, 6)
    plain = sde.integrate(reverse, torch.ones(2, 2), grid, sde.Euler())
    model.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.register_forward_hook(lambda *_: seen.append("after"))
    torch.testing.assert_close(sde.integrate(reverse, torch.ones(2, 2), grid, sde.Euler()), plain)
    assert seen == ["before", "after"] * 5


def test_the_network_is_told_the_clock() -> None:
    told = []

    class Net(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            told.append(c)
            return torch.zeros_like(x)

    for forward, t, clock in (
        (sde.Flow(), 0.3, 0.3),
        (sde.EDM(), 2.0, math.log(2) / 4),
        (sde.Tabulated.linear(), 7.0, 6.0),
    ):
        model = sde.ScoreModel(Net(), forward)
        for time in (t, torch.tensor(t), torch.full((3,), t), Table(torch.tensor([forward.t_max, t])).nodes[1]):
            model(torch.zeros(3, 2), time)
            assert told[-1].shape == (3,)
            assert told[-1].dtype == torch.float32
            assert told[-1][0].item() == pytest.approx(clock, rel=1e-5)
        model(torch.zeros(3, 2, dtype=torch.bfloat16), t)
        assert told[-1].dtype == torch.float32  # half precision cannot tell one clock from the next


def test_conditions_are_closed_over() -> None:
    model, x = model_of(sde.VP()), torch.randn(4, 2)
    given = model.given(shift=torch.ones(4, 2))
    assert torch.equal(given(x, 0.5).x0, model(x, 0.5, shift=torch.ones(4, 2)).x0)
    assert not torch.allclose(given(x, 0.5).x0, model(x, 0.5).x0)
    again = given.given(shift=torch.zeros(4, 2))
    torch.testing.assert_close(again(x, 0.5).x0, model(x, 0.5).x0)
    assert given.data_scale() == model.data_scale()
    assert given.sde is model.sde
    assert isinstance(sde.sample(given, (4, 2), steps=3), Tensor)


def test_placement_follows_the_weights() -> None:
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
    assert model.placement() == (torch.device("cpu"), torch.float32)
    assert model.double().placement()[1] == torch.float64


def test_gradients_reach_the_state_and_the_weights() -> None:
    model = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.VP())
    with torch.no_grad():
        model.net.outward.weight.normal_()  # type: ignore[union-attr]
    x = torch.randn(4, 2, requires_grad=True)
    model(x, 0.5).score.square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())
    assert all(p.grad is not None for p in model.parameters())


def test_inference_mode_and_no_grad_are_left_alone() -> None:
    class Mine(sde.ScalarSDE):  # rates by autograd, whatever the mode
        def alpha(self, t: Tensor) -> Tensor:
            return torch.exp(-t)

        def sigma(self, t: Tensor) -> Tensor:
            return torch.sqrt(1 - torch.exp(-2 * t))

    model, x = model_of(Mine()), torch.randn(4, 2)
    expected = model(x, 0.5).velocity
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(model(x, 0.5).velocity, expected)
            assert torch.equal(model(x, torch.full((4,), 0.5).double()).velocity, expected)
            assert sde.sample(model, (4, 2), steps=3).shape == (4, 2)


# Law 11.


@pytest.mark.parametrize("param", PARAMS)
def test_law_11(param: str) -> None:
    sde.checks.coupled(model_of(sde.Flow(), param, coupled=True))
    assert "11 coupled" in sde.checks.model(model_of(sde.Flow(), param, coupled=True))


def test_law_11_for_a_matrix_sde_and_wrappers() -> None:
    model = model_of(sde.CLD(), coupled=True)
    sde.checks.coupled(model)
    scalar = model_of(sde.Flow(), coupled=True)
    for wrapper in (sde.Reschedule(scalar, sde.VP()), scalar.given(), sde.CFG(scalar, model_of(sde.Flow()), 2.0)):
        sde.checks.coupled(wrapper)


def test_a_lost_mark_and_an_unmarked_model_are_caught() -> None:
    class Careless(sde.Wrapper):
        def forward(self, x: Tensor, t: float | Tensor, **cond: object) -> sde.Point:
            point = self.model(x, t, **cond)
            return sde.Point(self.sde, x, t, point.x0)

    with pytest.raises(LawViolation, match=r"law 11 is broken by Careless: point\.score is not refused"):
        sde.checks.coupled(Careless(model_of(sde.Flow(), coupled=True)))
    with pytest.raises(LawViolation, match="the model is not marked coupled"):
        sde.checks.coupled(model_of(sde.Flow()))


# What is caught, and what is refused.


class Neighbours(Wavy):
    def forward(self, x: Tensor, c: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(x - x.mean(0), c)


class Doubles(Wavy):
    def forward(self, x: Tensor, c: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(x, c).double()


class Restless(Wavy):
    def forward(self, x: Tensor, c: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x), c)


@pytest.mark.parametrize(
    ("net", "word"),
    [(Neighbours(), "alone, not in a batch"), (Doubles(), "dtype torch.float64"), (Restless(), "x0 for t")],
)
def test_a_net_that_breaks_the_contract_is_caught(net: nn.Module, word: str) -> None:
    with pytest.raises(LawViolation, match="law 4 is broken by ScoreModel") as caught:
        sde.checks.model(sde.ScoreModel(net, sde.VP()))
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"param": "epsilon"}, "param must be one of edm, eps, x0, v, velocity, score, got 'epsilon'"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0: pass the data's standard deviation"),
        ({"scale": -1.0}, "scale must be positive"),
        ({"scale": math.nan}, "scale must be positive and finite, got nan"),
        ({"scale": math.inf}, "scale must be positive and finite, got inf"),
        ({"mean": math.nan}, "mean must be finite"),
        ({"mean": [0.0, math.inf]}, "mean must be finite"),
    ],
)
def test_wrong_arguments_are_refused(keys: dict, word: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        sde.ScoreModel(Wavy(), sde.VP(), **keys)
    assert word in str(caught.value)


def test_wrong_answers_of_a_net_are_refused() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return x.sum(1, keepdim=True)  # would be broadcast without a word

    with pytest.raises(ValueError, match=r"net returned shape \(4, 1\) for x of shape \(4, 2\): return one like x"):
        sde.ScoreModel(Sum(), sde.VP())(torch.zeros(4, 2), 0.5)


@pytest.mark.parametrize("t", [-0.1, 1.5, math.nan, torch.tensor([0.5, 0.5, 0.5, 2.0])])
def test_times_out_of_range_are_refused(t: float | Tensor) -> None:
    for model in (model_of(sde.VP()), sde.ExactScore(sde.Gaussian([0.0, 0.0], 1.0), sde.VP())):
        with pytest.raises(
            ValueError, match=r"t must lie in \[0, 1\] for VP, got .*: data are at t = 0, noise at t_max"
        ):
            model(torch.zeros(4, 2), t)


@pytest.mark.parametrize("t", [torch.full((3,), 0.5), torch.full((4, 1), 0.5), torch.full((4, 1, 1, 1), 0.5)])
def test_times_of_another_shape_are_refused(t: Tensor) -> None:
    for forward in (sde.VP(), sde.CLD()):
        with pytest.raises(ValueError, match=r"t has shape .*: pass t of shape \(\) or \(4,\)"):
            model_of(forward)(forward.state(torch.zeros(4, 2)), t)


def test_conditions_lie_where_the_model_lies_and_move_with_it() -> None:
    model = sde.ScoreModel(sde.nets.MLP(dim=2, classes=3, width=8), sde.VP())
    label = torch.tensor([0, 2])
    moved = Given(model, label=label).to("meta")
    for given in (moved, Given(model, label=label)):  # the second is placed there from the start
        assert given.cond["label"].device.type == "meta"
        assert given.cond["label"].dtype == torch.int64

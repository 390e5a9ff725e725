"""Classifier guidance against the exact conditional model, and classifiers trained on noise against the exact one."""

import math

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.nodes import Table
from sde.score import BayesClassifier, Classifier, ClassifierGuidance

MEANS, COVS, WEIGHTS = [[-1.5, 0.0], [1.5, 0.5], [0.0, 1.5]], [0.1, 0.2, 0.15], [0.5, 0.3, 0.2]
TARGETS = [sde.Gaussian(m, c) for m, c in zip(MEANS, COVS, strict=True)]
LABEL = torch.tensor([2, 0, 1, 1, 0])


def parts(forward: sde.ForwardSDE) -> tuple[list[sde.ExactScore], sde.ExactScore, BayesClassifier]:
    """The classes, their mixture, and the exact classifier."""
    classes = [sde.ExactScore(target, forward) for target in TARGETS]
    return classes, sde.ExactScore(sde.Mixture(WEIGHTS, MEANS, COVS), forward), BayesClassifier(classes, WEIGHTS)


def states(forward: sde.ForwardSDE, t: float, n: int = 5) -> Tensor:
    x0 = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return forward.perturb(x0, t, torch.Generator().manual_seed(1)).x


def times(forward: sde.ForwardSDE) -> list[float]:
    low, high = forward.t_min, forward.t_max
    return [low + share * (high - low) for share in (0.05, 0.4, 0.9)]


def test_exact_model_and_classifier_make_the_conditional_model(any_sde: sde.ForwardSDE) -> None:
    """At scale 1; at others the score is s + w (s_c - s), as CFG has it."""
    classes, mixture, bayes = parts(any_sde)
    for t in times(any_sde):
        x = states(any_sde, t)
        for w in (1.0, 3.0):
            got = ClassifierGuidance(mixture, bayes, LABEL, w)(x, t)
            for i, k in enumerate(LABEL.tolist()):
                one = x[i : i + 1]
                expected = sde.CFG(classes[k], mixture, w)(one, t)
                torch.testing.assert_close(got.x0[i : i + 1], expected.x0, rtol=1e-6, atol=1e-6)
                size = expected.score.abs().max().item()
                torch.testing.assert_close(got.score[i : i + 1], expected.score, rtol=1e-6, atol=1e-6 * size)


def test_times_as_tensors_as_one_for_each_and_as_nodes(any_sde: sde.ForwardSDE) -> None:
    _, mixture, bayes = parts(any_sde)
    torch.manual_seed(0)
    learned = Classifier(sde.nets.MLPClassifier(2, 3, width=8), any_sde, mean=[0.3, -0.2], scale=1.5).double()
    nn.init.normal_(learned.net.outward.weight)
    grid = torch.tensor(times(any_sde), dtype=torch.float64)
    for classifier in (bayes, learned):
        guided = ClassifierGuidance(mixture, classifier, LABEL, 2.0, interval=(0.0, 1e9))
        for t, node in zip(grid, Table(grid).nodes, strict=True):
            x = states(any_sde, float(t))
            expected = guided(x, float(t)).x0
            for other in (t, t.expand(5), node):
                torch.testing.assert_close(guided(x, other).x0, expected, rtol=1e-8, atol=1e-8)


def test_samples_are_the_class() -> None:
    """Each sample of its own class, by flow and by SDE, from the mixture's model and a classifier."""
    _, mixture, bayes = parts(sde.VP())
    label = torch.arange(3).repeat_interleave(1000)
    for eta, solver in ((0, None), (1, sde.DPMSolverPP())):
        guided = ClassifierGuidance(mixture, bayes, label)
        x = sde.sample(guided, (3000, 2), 40, solver, eta=eta, generator=torch.Generator().manual_seed(2))
        for k, target in enumerate(TARGETS):
            own = x[label == k].double()
            spread = float(target.cov[0, 0]) ** 0.5
            assert bool(((own.mean(0) - target.mean).abs() < (5 / 1000**0.5 + 0.02) * spread).all())
            assert own.var(0).mean().item() == pytest.approx(spread**2, rel=0.2)


def test_outside_of_the_interval_and_at_scale_0_the_classifier_is_not_asked() -> None:
    def never(x: Tensor, t: float | Tensor) -> Tensor:
        raise AssertionError

    mixture = parts(sde.VP())[1]
    x = torch.randn(5, 2)
    for guided in (
        ClassifierGuidance(mixture, never, LABEL, 0.0),
        ClassifierGuidance(mixture, never, LABEL, 2.0, interval=(0.1, 0.2)),
    ):
        assert torch.equal(guided(x, 0.5).score, mixture(x, 0.5).score)


def test_any_function_of_states_and_times_is_a_classifier() -> None:
    """log p = -|x - k|^2 / 2: the score is moved by its slope, and it sees times as tensors."""
    seen = []

    def judge(x: Tensor, t: float | Tensor) -> Tensor:
        seen.append(type(t))
        return torch.stack([x[:, 0], -x[:, 0]], 1)  # log-odds 2 x_1

    mixture = parts(sde.VP())[1]
    guided = ClassifierGuidance(mixture, judge, 0)
    x = torch.tensor([[0.3, 1.0]])
    moved = guided(x, 0.5).score - mixture(x, 0.5).score
    torch.testing.assert_close(moved, torch.tensor([[2 * (1 - torch.sigmoid(torch.tensor(0.6)).item()), 0.0]]))
    sde.sample(guided, (2, 2), steps=3, progress=False)
    assert set(seen) == {Tensor}


def test_gradients_where_there_are_none_and_where_they_are_differentiated() -> None:
    _, mixture, bayes = parts(sde.VP())
    guided, x = ClassifierGuidance(mixture, bayes, 1), torch.randn(4, 2, dtype=torch.float64)
    expected = guided(x, 0.3).score
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            got = guided(x.clone(), 0.3).score
        assert not got.requires_grad
        torch.testing.assert_close(got.clone(), expected)
    exact, y = (
        From(mixture, sde.ExactScore(TARGETS[1], sde.VP())),
        TARGETS[1].sample(4, torch.Generator().manual_seed(0)),
    )
    grid = sde.grids.log_snr(sde.VP(), 20).flip(0)
    torch.testing.assert_close(sde.log_prob(guided, y, grid), sde.log_prob(exact, y, grid), atol=1e-9, rtol=0)


class From(sde.Wrapper):
    """A model that starts from another's prior, and runs on its grids."""

    def __init__(self, start: sde.Model, model: sde.Model) -> None:
        super().__init__(start)
        self.way = model

    def forward(self, x: Tensor, t: float | Tensor, **cond: object) -> sde.Point:
        return self.way(x, t)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.tensor([0, 1]), r"label has shape \(2,\), expected \(5,\): one class to each sample"),
        (torch.tensor([0, 1, 2, 3, 0]), r"label must be 0 to 2, got \[0, 1, 2, 3, 0\]"),
        (-1, r"label must be 0 to 2, got \[-1\]"),
        (0.5, r"label must be whole numbers \(B,\), got torch.float32"),
        (torch.zeros(5, 1, dtype=torch.int64), r"label must be whole numbers \(B,\), got .* of shape \(5, 1\)"),
    ],
)
def test_labels(label: Tensor | int, message: str) -> None:
    _, mixture, bayes = parts(sde.VP())
    with pytest.raises(ValueError, match=message):
        ClassifierGuidance(mixture, bayes, label)(torch.zeros(5, 2), 0.5)


class Odd(nn.Module):
    """No logits."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x[:, None]


def test_refusals() -> None:
    vp = sde.VP()
    classes, mixture, bayes = parts(vp)
    coupled = sde.ScoreModel(sde.nets.MLP(dim=2, width=8), sde.Flow(), "velocity", coupled=True)
    with pytest.raises(ValueError, match="ClassifierGuidance needs a score, and model was trained with a coupling"):
        ClassifierGuidance(coupled, lambda x, t: x, 0)
    with pytest.raises(ValueError, match=r"model and classifier must share their SDE, got VP.* and EDM"):
        ClassifierGuidance(mixture, parts(sde.EDM())[2], 0)
    with pytest.raises(ValueError, match="scale must be finite, got nan: 0 is no guidance"):
        ClassifierGuidance(mixture, bayes, 0, math.nan)
    with pytest.raises(TypeError, match=r"models\[1\] is a ScoreModel, which states no density: use ExactScore"):
        BayesClassifier([classes[0], sde.ScoreModel(sde.nets.MLP(dim=2, width=8), vp)])
    with pytest.raises(
        ValueError, match=r"weights must be 3 non-negative numbers with a positive sum, got \[1.0, 2.0\]"
    ):
        BayesClassifier(classes, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"net returned shape \(4, 1, 1\): return logits of shape \(4, classes\)"):
        Classifier(Odd(), vp)(torch.zeros(4, 1), 0.5)
    for scale in (0.0, math.inf):
        with pytest.raises(ValueError, match="scale must be positive and finite, got"):
            Classifier(nn.Identity(), vp, scale=scale)


def test_a_run_that_explodes_names_the_classifier() -> None:
    mixture = parts(sde.VP())[1]
    steep = ClassifierGuidance(mixture, lambda x, t: 1e300 * torch.stack([x[:, 0], -x[:, 0]], 1), 0, scale=1e9)
    with pytest.raises(ValueError, match=r"not finite under ClassifierGuidance\(scale=1e\+09\): use a scale below"):
        sde.sample(steep, (2, 2), steps=4, progress=False)


# Picard and captured runs look for conditions to take along.


def test_labels_go_along_in_parallel() -> None:
    _, mixture, bayes = parts(sde.VP())
    guided = ClassifierGuidance(mixture, bayes, LABEL)
    start = torch.randn(5, 2, dtype=torch.float64)
    one, other = (
        sde.sample(guided, x=start, steps=10, solver=solver, progress=False)
        for solver in (sde.Picard(sde.DDIM(), tolerance=1e-8), sde.DDIM())
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# Training.


def data(n: int = 4000) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    label = torch.multinomial(torch.tensor(WEIGHTS), n, True, generator=g).sort().values
    return torch.cat([TARGETS[k].sample(int((label == k).sum()), g) for k in range(3)]).float(), label


@pytest.mark.parametrize("forward", [sde.VP(), pytest.param(sde.CLD(), marks=pytest.mark.slow)])
def test_a_trained_classifier_is_the_bayes_classifier(forward: sde.ForwardSDE) -> None:
    x, label = data()
    classifier = Classifier(sde.nets.MLPClassifier(2, 3, width=48), forward, mean=x.mean(0), scale=float(x.std()))
    history = sde.train.classify(
        classifier, x, label, 600, lr=5e-3, ema=0.98, generator=torch.Generator().manual_seed(1), progress=False
    )
    assert not classifier.training
    assert history.loss[-1] < history.loss[0]
    bayes = parts(forward)[2]
    for t in times(forward):
        xt = forward.perturb(x[::4], t, torch.Generator().manual_seed(2)).x
        with torch.no_grad():
            off = (classifier(xt, t).softmax(1) - bayes(xt, t).softmax(1)).abs().sum(1).mean() / 2
        assert off < 0.09, t  # half of it where nearly nothing is left of the data


def test_training_is_reproducible_and_tells_its_steps() -> None:
    x, label = data(500)

    def train() -> tuple[list[Tensor], sde.History, list[int]]:
        torch.manual_seed(3)
        classifier, steps = Classifier(sde.nets.MLPClassifier(2, 3, width=8), sde.VP(), scale=1.5), []
        history = sde.train.classify(
            classifier, x, label, 20, every=10, generator=torch.Generator().manual_seed(1), progress=False,
            callback=lambda step: steps.append(step.step),
        )  # fmt: skip
        return list(classifier.parameters()), history, steps

    (one, first, steps), (other, second, _) = train(), train()
    assert first.loss == second.loss
    assert steps == first.step == [10, 20]
    assert first.loss[0] == pytest.approx(math.log(3), abs=0.2)  # knows nothing yet
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_classifier_of_images_learns_from_bytes() -> None:
    """Bright and dark pictures, told apart up to the noise at which nothing is left of them."""
    bright = torch.arange(2).repeat(100)
    x = (
        torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 60 + 170 * bright[:, None, None, None]
    ).byte()
    net = sde.nets.UNetClassifier(1, 2, width=8, multipliers=(1, 2))
    classifier = Classifier(net, sde.EDM(), mean=-0.1, scale=0.7)
    sde.train.classify(
        classifier, x, bright, 60, batch=32, lr=5e-3, ema=0.8, flip=True, dequantize=1.0, progress=False,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    noisy = sde.EDM().perturb(x.float() / 127.5 - 1, 0.5, torch.Generator().manual_seed(2)).x
    with torch.no_grad():
        assert (classifier(noisy, 0.5).argmax(1) == bright).float().mean() > 0.98


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label": torch.zeros(100)}, ValueError, r"label must be whole numbers \(100,\).*got torch.float32"),
        ({"label": torch.zeros(99, dtype=torch.int64)}, ValueError, r"label must be whole numbers \(100,\)"),
        ({"label": torch.full((100,), 3)}, ValueError, r"label must be 0 to 2, got 3 to 3: number the classes from 0"),
        ({"classifier": nn.Identity()}, TypeError, r"classifier must be a Classifier, got Identity"),
        ({"data": torch.full((100, 2), math.nan)}, ValueError, r"data holds 200 values that are not finite"),
        ({"steps": 0}, ValueError, r"steps must be at least 1, got 0"),
        ({"lr": 0.0}, ValueError, r"lr must be positive and finite"),
        ({"flip": True}, ValueError, r"flip needs images"),
    ],
)
def test_what_training_refuses(change: dict, error: type[Exception], message: str) -> None:
    classifier = Classifier(sde.nets.MLPClassifier(2, 3, width=8), sde.VP())
    told = {
        "classifier": classifier,
        "data": torch.randn(100, 2),
        "label": torch.zeros(100, dtype=torch.int64),
        "steps": 2,
    }
    with pytest.raises(error, match=message):
        sde.train.classify(**(told | change), progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sde.nets.MLPClassifier(2, 1), "classes must be at least 2, got 1"),
        (lambda: sde.nets.MLPClassifier(0, 2), "dim must be at least 1, got 0"),
        (lambda: sde.nets.MLPClassifier(2, 3, time="hours"), "time must be one of fourier, sinusoidal, got 'hours'"),
        (lambda: sde.nets.MLPClassifier(2, 3)(torch.zeros(4, 5), torch.zeros(4)), "x has 5 coordinates a sample"),
        (lambda: sde.nets.UNetClassifier(1, 2, multipliers=()), r"multipliers must be one positive number a level"),
        (lambda: sde.nets.UNetClassifier(1, 2)(torch.zeros(4, 1, 6, 8), torch.zeros(4)), r"H and W multiples of 4"),
    ],
)
def test_what_networks_refuse(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

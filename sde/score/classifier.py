r"""Classifier guidance: a model tilted by a classifier that reads noise.

By Bayes' rule, at every t,

    grad log p_t(x | c) = grad log p_t(x) + grad log p_t(c | x),

with p_t(c | x) the posterior of the class of x0 given the *noisy* state x. So a score without classes and a classifier
trained on noised data make the conditional model: exactly, if both are exact and the scale is 1. The tilted point has
x0 moved by A^+ L L' g (`Point.tilted`), for a scalar SDE by sigma^2 / alpha g.

All that x says of x0 is its statistic y = alpha x0 + sigma n, so that a `Classifier` shows its network that, scaled to
unit variance, and the SDE's clock, as a `ScoreModel` does: matrix SDEs cost nothing extra.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde.forward import ForwardSDE, Point
from sde.nodes import Node
from sde.score.guidance import Band, Guidance, no_coupling, same_sde
from sde.score.model import Given, Levels, Model, Regression
from sde.shape import as_time, expand, placed, plus, scaled

Judge = Callable[[Tensor, float | Tensor], Tensor]
"""From states x (B, ...) and times t to logits (B, classes): `Classifier`, `BayesClassifier` or a function."""


class Classifier(nn.Module):
    r"""Noise-conditioned classifier: a network that says which class a noisy state came from.

    logits = net(c_in (y - alpha mean), clock) with y the state's statistic and c_in = 1 / hypot(alpha scale, sigma).
    `sde.train.classify` trains it.

    Args:
        net: Called as net(x, c) with x (B, \*D) of about unit variance and c (B,) the SDE's clock; returns logits
            (B, classes): `nets.MLPClassifier`, `nets.UNetClassifier`.
        sde: Forward SDE, scalar or matrix.
        mean: Mean of the data, a number or a tensor that broadcasts against one sample.
        scale: Standard deviation of the data, one number.

    Raises:
        ValueError: If scale or mean is not finite, or the net returns something else than logits.

    Example:
        >>> import torch, sde
        >>> net = sde.nets.MLPClassifier(dim=2, classes=3, width=16)
        >>> sde.Classifier(net, sde.CLD())(torch.zeros(4, 2, 2), 0.5).shape  # two channels of a matrix SDE
        torch.Size([4, 3])
    """

    tabulates = True
    mean: Tensor

    def __init__(
        self, net: nn.Module, sde: ForwardSDE, mean: float | Sequence[float] | Tensor = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale must be positive and finite, got {scale}: pass the data's standard deviation")
        self.net, self.sde, self.scale = net, sde, float(scale)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.get_default_dtype()).clone())
        if not bool(torch.isfinite(self.mean).all()):
            raise ValueError(f"mean must be finite, got {self.mean}: pass the data's mean")

    placement = Model.placement

    def levels(self, t: Tensor) -> Levels:
        """The schedule at a tensor of times, in its shape: what training needs."""
        return Regression(self.sde, "edm", self.scale).levels(t)

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Logits (B, classes) at states x and times t, () or (B,)."""
        if type(t) is not Node:
            self.sde.check_time(t)
        y, alpha, sigma = self.sde.statistic(x, t)
        precise = torch.promote_types(y.dtype, torch.float32)
        if type(t) is Node:
            c_in = 1 / math.hypot(alpha * self.scale, sigma)
            reading = t.table.numbers(self.sde, "clock", self.sde.clock)[t.index]
            clock = torch.full((len(y),), reading, dtype=precise, device=y.device)
        else:
            c_in = 1 / torch.hypot(as_time(alpha) * self.scale, as_time(sigma))
            clock = placed(self.sde.clock(as_time(t)), y.device, precise).expand(len(y))
        mean = self.mean.to(y)
        centred = y - (alpha * mean).to(y.dtype) if isinstance(alpha, Tensor) else plus(y, -alpha, mean)
        logits: Tensor = self.net(scaled(c_in, centred), clock)
        if logits.ndim != 2 or len(logits) != len(y):
            raise ValueError(f"net returned shape {tuple(logits.shape)}: return logits of shape ({len(y)}, classes)")
        return logits


class BayesClassifier(nn.Module):
    """The exact classifier of classes whose densities are known: logits log w_k + log p_t(x | k).

    Args:
        models: A model for each class that states its density, `ExactScore`; under one SDE.
        weights: Probability of each class, up to a factor. Default: equal.

    Raises:
        TypeError: If a model has no log_prob(x, t).
        ValueError: If the models have different SDEs, or weights do not fit.

    Example:
        >>> import torch, sde
        >>> classes = [sde.ExactScore(sde.Gaussian([m], 0.1), sde.VP()) for m in (-1.0, 1.0)]
        >>> bayes = sde.BayesClassifier(classes, weights=[0.9, 0.1])
        >>> bayes(torch.zeros(1, 1), 1.0).softmax(1)  # in noise, all that is known is how frequent they are
        tensor([[0.9000, 0.1000]])
    """

    tabulates = True
    log_weights: Tensor

    def __init__(self, models: Sequence[Model], weights: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        for k, model in enumerate(models):
            if not callable(getattr(model, "log_prob", None)):
                raise TypeError(f"models[{k}] is a {type(model).__name__}, which states no density: use ExactScore")
        same_sde({f"models[{k}]": model for k, model in enumerate(models)})
        self.models, self.sde = nn.ModuleList(models), models[0].sde
        self.register_buffer("log_weights", torch.log(checked_weights(weights, len(models))))

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Logits (B, classes) at states x and times t, () or (B,)."""
        log_p: list[Tensor] = [model.log_prob(x, t) for model in self.models]  # pyright: ignore[reportCallIssue]
        return torch.stack(log_p, 1) + self.log_weights.to(x)


def checked_weights(weights: Sequence[float] | Tensor | None, n: int) -> Tensor:
    """n probabilities from weights up to a factor, float64.

    Example:
        >>> checked_weights([1.0, 3.0], 2)
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    w = torch.ones(n, dtype=torch.float64) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    if w.shape != (n,) or not bool(torch.isfinite(w).all()) or not bool((w >= 0).all()) or not float(w.sum()) > 0:
        raise ValueError(f"weights must be {n} non-negative numbers with a positive sum, got {w.tolist()}")
    return w / w.sum()


class Likelihood(Model):
    """log p_t(label | x) of a classifier, as a model whose label is given: where solvers look for conditions."""

    def __init__(self, classifier: Judge, sde: ForwardSDE) -> None:
        super().__init__()
        self.classifier, self.sde = classifier, sde
        self.tabulates = bool(getattr(classifier, "tabulates", False))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, t: float | Tensor, label: Tensor
    ) -> Tensor:
        """(B,)."""
        logits = self.classifier(x, t if self.tabulates else as_time(t))
        if label.shape not in ((1,), (len(x),)):
            raise ValueError(f"label has shape {tuple(label.shape)}, expected ({len(x)},): one class to each sample")
        if label.device.type == "cpu" and not 0 <= int(label.min()) <= int(label.max()) < logits.shape[1]:
            raise ValueError(f"label must be 0 to {logits.shape[1] - 1}, got {label.tolist()[:8]}")
        return torch.log_softmax(logits, 1).gather(1, label.expand(len(x))[:, None])[:, 0]


class ClassifierGuidance(Guidance):
    """A model tilted by scale × grad log p_t(label | x).

    At scale 1, with exact model and classifier, the conditional model; above it the class is exaggerated, as by
    `CFG(scale=1 + s)`.

    Args:
        model: Score model, with classes of its own or without.
        classifier: From (x, t) to logits (B, classes), for states and times of the model's SDE: a trained `Classifier`,
            a `BayesClassifier`, or any differentiable function.
        label: Wanted classes, (B,) whole numbers, or one for all.
        scale: Factor of the gradient; 0 is no guidance.
        interval: Noise levels sigma / alpha in (low, high] where to guide; None for all.

    Raises:
        ValueError: If the model was trained with a coupling, the classifier with another SDE, or label does not fit.

    References:
        Sohl-Dickstein et al. (2015), 1503.03585, section 2.5; Song et al. (2021), 2011.13456, section 5;
        Dhariwal & Nichol (2021), 2105.05233, algorithms 1 and 2.

    Example:
        >>> import torch, sde
        >>> classes = [sde.ExactScore(sde.Gaussian([m], 0.1), sde.VP()) for m in (-1.0, 1.0)]
        >>> both = sde.ExactScore(sde.Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1]), sde.VP())
        >>> guided = sde.ClassifierGuidance(both, sde.BayesClassifier(classes), label=1)
        >>> x = torch.randn(5, 1)
        >>> torch.allclose(guided(x, 0.5).score, classes[1](x, 0.5).score, atol=1e-5)
        True
    """

    def __init__(
        self, model: Model, classifier: Judge, label: int | Tensor, scale: float = 1.0, interval: Band | None = None
    ) -> None:
        no_coupling("ClassifierGuidance", {"model": model})
        if isinstance(getattr(classifier, "sde", None), ForwardSDE):
            same_sde({"model": model, "classifier": classifier})  # pyright: ignore[reportArgumentType]
        label = torch.as_tensor(label)
        if label.is_floating_point() or label.ndim > 1:
            raise ValueError(f"label must be whole numbers (B,), got {label.dtype} of shape {tuple(label.shape)}")
        super().__init__(model, scale, interval)
        self.tabulates = model.tabulates
        self.likelihood = Given(Likelihood(classifier, model.sde), label=label.reshape(-1))

    def forward(self, x: Tensor, t: float | Tensor, **cond: Any) -> Point:  # noqa: D102
        w, point = self.strength(t), self.model(x, t, **cond)
        if not isinstance(w, Tensor) and w == 0.0:
            return point
        g = slope(self.likelihood, x, t)
        return point.tilted(expand(w.to(g), g) * g if isinstance(w, Tensor) else w * g)


def slope(log_p: Callable[[Tensor, float | Tensor], Any], x: Tensor, t: float | Tensor) -> Tensor:
    """Gradient of a log-density (B,) by the states, each its own; differentiable itself where x is.

    Example:
        >>> slope(lambda x, t: -x.square().sum(1) / 2, torch.tensor([[1.0, 2.0]]), 0.5)
        tensor([[-1., -2.]])
    """
    again = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        u = x if again else x.detach().clone().requires_grad_()
        total = log_p(u, t).sum() + 0 * u.sum()  # one that ignores x has a gradient as well: 0
        (g,) = torch.autograd.grad(total, u, create_graph=again)
    return g
